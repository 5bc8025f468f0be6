# Trustee's EAR policy `default_cpu` for Antechamber's guests: affirming only where every register is a Reference Value,
# the log is ours to the last entry, and nothing of the platform is expired. Anything else is contraindicated.
package policy

import rego.v1

default executables := 97

default hardware := 97

default configuration := 97

trust_claims := {
	"executables": executables,
	"hardware": hardware,
	"configuration": configuration,
	"file-system": 0,
	"instance-identity": 0,
	"runtime-opaque": 0,
	"storage-opaque": 0,
	"sourced-data": 0,
}

body := input.tdx.quote.body

hardware := 2 if {
	input.tdx.quote.header.tee_type == "81000000"
	input.tdx.quote.header.vendor_id == "939a7233f79c4ca9940a0db3957f0607"
	body.mr_td in query_reference_value("mr_td")
	input.tdx.tcb_status in query_reference_value("tcb_status")
	input.tdx.collateral_expiration_status == "0"
}

configuration := 2 if {
	input.tdx.td_attributes.debug == false
	body.td_attributes in query_reference_value("td_attributes")
	body.xfam in query_reference_value("xfam")
	body.mr_config_id in query_reference_value("mr_config_id")
}

executables := 3 if {
	body.rtmr_1 in query_reference_value("rtmr_1")
	body.rtmr_2 in query_reference_value("rtmr_2")
	count(runtime) == count(operations)
	operations in [boot_events, array.concat(boot_events, ["released"])]
	content("config") in query_reference_value("antechamber_config")
	content("engine") in query_reference_value("antechamber_engine")
}

boot_events := ["config", "init-data", "engine", "model", "gpu", "tls", "receipt"]

# RTMR3's entries: Trustee's own default does not look at them.
runtime := [event | some event in input.tdx.uefi_event_logs; event.index == 4]

operations := [event.details.data.operation |
	some event in runtime
	event.type_name == "EV_EVENT_TAG"
	event.digest_matches_event == true
	event.details.data.domain == "antechamber"
]

content(name) := runtime[i].details.data.content if {
	some i, operation in operations
	operation == name
}
