# Trustee's EAR policy `default_gpu`: of a GPU that its local verifier verified (Hopper), or that NRAS did.
# The local verifier compares no RIM, so its GPU gets 4 ("not all of it is recognised"), NRAS's gets 3; both are affirming.
package policy

import rego.v1

default executables := 97

default hardware := 97

default configuration := 97

trust_claims := {"executables": executables, "hardware": hardware, "configuration": configuration}

# -- verified locally: signature, chain to NVIDIA's pinned root, FWID and nonce held, or there would be no claims

hardware := 2 if input.nvidia.arch == "Hopper"

hardware := 2 if {
	input.nvidia["x-nvidia-gpu-attestation-report-signature-verified"] == true
	input.nvidia["x-nvidia-gpu-attestation-report-cert-chain-fwid-match"] == true
	input.nvidia["x-nvidia-gpu-arch-check"] == true
}

configuration := 2 if {
	version(input.nvidia.config.OPAQUE_FIELD_ID_DRIVER_VERSION) in query_reference_value("allowed_driver_versions")
	version(input.nvidia.config.OPAQUE_FIELD_ID_VBIOS_VERSION) in query_reference_value("allowed_vbios_versions")
}

configuration := 2 if {
	input.nvidia.secboot == true
	input.nvidia.dbgstat == "disabled"
	input.nvidia["x-nvidia-gpu-driver-version"] in query_reference_value("allowed_driver_versions")
	input.nvidia["x-nvidia-gpu-vbios-version"] in query_reference_value("allowed_vbios_versions")
}

executables := 4 if {
	input.nvidia.arch == "Hopper"
	configuration == 2
}

executables := 3 if input.nvidia.measres == "success"

# The report's texts end in NUL.
version(text) := trim_right(text, "\u0000")
