"""Options of engines: those that a configuration may give, and why others are never passed on."""

from collections.abc import Mapping
from types import MappingProxyType

_COUNT = r"[1-9]\d{0,8}"
_SHARE = r"0\.\d{1,4}|1\.0"
_WORD = r"[A-Za-z0-9][\w.-]{0,63}"
_BARE = None  # takes no value

# option -> pattern of its value; an option that is not here does not pass
ALLOWED: Mapping[str, Mapping[str, str | None]] = MappingProxyType(
    {
        "builtin": {"--max-model-len": _COUNT, "--max-num-seqs": _COUNT},
        "vllm": {
            "--block-size": _COUNT,
            "--dtype": _WORD,
            "--enable-auto-tool-choice": _BARE,
            "--enable-chunked-prefill": _BARE,
            "--enable-expert-parallel": _BARE,
            "--enable-prefix-caching": _BARE,
            "--enforce-eager": _BARE,
            "--gpu-memory-utilization": _SHARE,
            "--kv-cache-dtype": _WORD,
            "--max-model-len": _COUNT,
            "--max-num-batched-tokens": _COUNT,
            "--max-num-seqs": _COUNT,
            "--no-enable-prefix-caching": _BARE,
            "--pipeline-parallel-size": _COUNT,
            "--quantization": _WORD,
            "--reasoning-parser": _WORD,
            "--seed": _COUNT,
            "--shutdown-timeout": _COUNT,
            "--tensor-parallel-size": _COUNT,
            "--tool-call-parser": _WORD,
        },
        "sglang": {
            "--chunked-prefill-size": _COUNT,
            "--context-length": _COUNT,
            "--disable-cuda-graph": _BARE,
            "--disable-radix-cache": _BARE,
            "--dtype": _WORD,
            "--kv-cache-dtype": _WORD,
            "--max-running-requests": _COUNT,
            "--mem-fraction-static": _SHARE,
            "--quantization": _WORD,
            "--random-seed": _COUNT,
            "--reasoning-parser": _WORD,
            "--tool-call-parser": _WORD,
            "--tp-size": _COUNT,
        },
        "tgi": {
            "--cuda-memory-fraction": _SHARE,
            "--dtype": _WORD,
            "--kv-cache-dtype": _WORD,
            "--max-batch-prefill-tokens": _COUNT,
            "--max-concurrent-requests": _COUNT,
            "--max-input-tokens": _COUNT,
            "--max-total-tokens": _COUNT,
            "--num-shard": _COUNT,
            "--quantize": _WORD,
        },
        "tensorrt-llm": {
            "--ep_size": _COUNT,
            "--kv_cache_free_gpu_memory_fraction": _SHARE,
            "--max_batch_size": _COUNT,
            "--max_num_tokens": _COUNT,
            "--max_seq_len": _COUNT,
            "--pp_size": _COUNT,
            "--tp_size": _COUNT,
        },
    }
)

_CODE = "it runs code that the policy does not measure"
_LOGS = "it writes prompts or answers where they can be read"
_OPEN = "it opens a way in or out beside the gateway"
_NODES = "engines of several machines talk unencrypted and unproven"
_OURS = "the catalogue sets it"

# spelled with `-`, as the engines take both
_REFUSED = {
    _CODE: """--trust-remote-code --trust-request-chat-template --trust-request-mm-kwargs --middleware
        --worker-extension-cls --logits-processors --tool-parser-plugin --reasoning-parser-plugin --config
        --enable-custom-logit-processor --custom-module-dirs --custom-tokenizer --load-format --hf-overrides
        --tokenizer --chat-template --enable-lora --lora-modules""",
    _LOGS: """--enable-log-requests --enable-log-outputs --log-requests --log-requests-level --log-error-stack
        --crash-dump-folder --export-metrics-to-file --otlp-traces-endpoint --otlp-endpoint --profiler-config
        --collect-detailed-traces --log-level --uvicorn-log-level""",
    _OPEN: """--tool-server --kv-events-config --kv-transfer-config --allowed-local-media-path --grpc-port
        --enable-scale-out --ngrok --ngrok-authtoken --ngrok-edge --api-key --admin-api-key --ssl-keyfile
        --ssl-certfile --cors-allow-origin --download-dir --hf-token --code-revision""",
    _NODES: """--nnodes --node-rank --master-addr --master-port --dist-init-addr --distributed-executor-backend
        --data-parallel-address --data-parallel-size""",
    _OURS: """--host --hostname --port --uds --socket --model --model-path --model-id --backend --served-model-name
        --prometheus-port --usage-stats --json-output --allowed-media-domains --disable-uvicorn-access-log""",
}
FORBIDDEN: Mapping[str, str] = MappingProxyType(
    {option: reason for reason, options in _REFUSED.items() for option in options.split()}
)
