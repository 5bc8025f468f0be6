# Which resource a Trustee releases to which guest: Antechamber's rules, as far as Rego can say them.
# Edit `rules` and `policies`; what neither names is denied. docs/trustee.md says what stays without.
package policy

import rego.v1

default allow := false

# Plugin and path to the policy that the guest must meet, until when, and in which phase of its life: `boot` is before
# it measured `released`, `released` after, `any` both. A model key is for `boot`, always.
rules := {
	"resource/default/model-key/llama-3.1-8b": {"policy": "production", "phase": "boot", "until": "unlimited"},
	"external/antechamber/certificate": {"policy": "production", "phase": "any", "until": "unlimited"},
	"external/antechamber/lease": {"policy": "production", "phase": "released", "until": 1893456000},
}

# Lists of what is accepted, as in docs/examples/broker-policy.yaml. Only where a comment says so may `"any"` stand.
policies := {"production": {
	"mr_td": ["000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000001"],
	"rtmr_0": "any", # "any": it depends on the VM's shape
	"rtmr_1": ["000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000002"],
	"rtmr_2": ["000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000003"],
	"mr_config_id": [zero],
	"mr_owner": [zero],
	"mr_owner_config": [zero],
	"td_attributes": ["0000001000000000"],
	"xfam": ["e702060000000000"],
	"tcb_status": ["UpToDate"],
	"advisories": [],
	"events": {
		"config": ["sha384:000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000004"],
		"init-data": "any", # "any": mr_config_id says it too
		"engine": ["sha384:000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000005"],
		"model": ["sha256:0000000000000000000000000000000000000000000000000000000000000000"],
		"gpu": "any", # "any": of whatever GPU the submodules vouch for
	},
	"gpus": 1,
	"gpu_status": ["affirming"],
}}

zero := "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"

boot_events := ["config", "init-data", "engine", "model", "gpu", "tls", "receipt"]

# -- what follows is the same for everyone

allow if {
	rule := rules[concat("/", array.concat([data.plugin], data["resource-path"]))]
	genuine(policies[rule.policy])
	in_phase(rule.phase)
	in_time(rule.until)
}

cpu := input.submods.cpu0

evidence := cpu["ear.veraison.annotated-evidence"].tdx

body := evidence.quote.body

genuine(policy) if {
	cpu["ear.status"] == "affirming"
	evidence.quote.header.tee_type == "81000000"
	evidence.quote.header.vendor_id == "939a7233f79c4ca9940a0db3957f0607"
	evidence.td_attributes.debug == false
	every name in ["mr_td", "rtmr_0", "rtmr_1", "rtmr_2", "mr_config_id", "mr_owner", "mr_owner_config"] {
		accepted(body[name], policy[name])
	}
	body.td_attributes in policy.td_attributes
	body.xfam in policy.xfam
	evidence.tcb_status in policy.tcb_status
	evidence.collateral_expiration_status == "0"
	every advisory in evidence.advisory_ids {
		advisory in policy.advisories
	}
	every name, wanted in policy.events {
		accepted(content(name), wanted)
	}
	equipped(policy)
}

accepted(_, wanted) if wanted == "any"

accepted(seen, wanted) if seen in wanted

# RTMR3's entries, in the log's order. Trustee replays their digests, so none can be left out; but it lets an entry say
# something else than its digest does, so each must match.
runtime := [event | some event in evidence.uefi_event_logs; event.index == 4]

ours(event) if {
	event.type_name == "EV_EVENT_TAG"
	event.digest_matches_event == true
	event.details.data.domain == "antechamber"
}

operations := [event.details.data.operation | some event in runtime; ours(event)]

content(name) := runtime[i].details.data.content if {
	some i, operation in operations
	operation == name
}

in_phase("boot") if booting

in_phase("any") if booting

in_phase("any") if serving

in_phase("released") if serving

in_time(until) if until == "unlimited"

# Seconds since the epoch, by the KBS's own clock.
in_time(until) if {
	is_number(until)
	time.now_ns() < until * 1000000000
}

booting if {
	count(runtime) == count(operations)
	operations == boot_events
}

serving if {
	count(runtime) == count(operations)
	operations == array.concat(boot_events, ["released"])
	content("released") == content("tls")
}

# Every submodule is the CPU or one of the GPUs, and each GPU's has a status that counts.
equipped(policy) if {
	gpus := [name | input.submods[name]; regex.match(`^gpu[0-9]+$`, name)]
	count(gpus) == policy.gpus
	count(input.submods) == policy.gpus + 1
	every name in gpus {
		input.submods[name]["ear.status"] in policy.gpu_status
	}
}
