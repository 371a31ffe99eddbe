"""What a scoring process sees of the trainer's environment: an allow-list, because secrets have any name.

This keeps tokens and keys from what a reward function logs, sends or runs; it is no sandbox: the process is the
trainer's user and reads that user's files.
"""

import re
from collections.abc import Mapping, Sequence

from megarl.config.base import ConfigError
from megarl.telemetry.process_mark import DRIVER_VARIABLE, RUN_VARIABLE

# What any program needs to start, find its files and its libraries, and speak.
_NAMES = frozenset(
    [
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "SHELL",
        "HOSTNAME",
        "TERM",
        "LANG",
        "LANGUAGE",
        "TZ",
        "TMPDIR",
        "TEMP",
        "TMP",
        "LD_LIBRARY_PATH",
        "LD_PRELOAD",
        "VIRTUAL_ENV",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "REQUESTS_CA_BUNDLE",
        "CURL_CA_BUNDLE",
        "NO_PROXY",
        "CUDA_VISIBLE_DEVICES",
        "CUDA_HOME",
        "HF_HOME",
        "HF_HUB_CACHE",
        "HF_HUB_OFFLINE",
        "HF_DATASETS_CACHE",
        "HF_DATASETS_OFFLINE",
        "TRANSFORMERS_CACHE",
        "TRANSFORMERS_OFFLINE",
        # Whose process it is, should the trainer be killed.
        DRIVER_VARIABLE,
        RUN_VARIABLE,
    ]
)
_PREFIXES = ("PYTHON", "LC_", "CONDA_", "XDG_", "OMP_", "MKL_", "OPENBLAS_", "NUMEXPR_", "KMP_", "GOMP_", "NUMBA_")
_SECRET = re.compile(
    r"TOKEN|SECRET|PASSW|API_?KEY|ACCESS_?KEY|PRIVATE_?KEY|CREDENTIAL|(?:^|_)(?:AUTH|PASS|KEY|PWD)(?:_|$)"
)
_PROXIES = frozenset(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "FTP_PROXY"))


def worker_environment(environment: Mapping[str, str], *, named: Sequence[str] = ()) -> dict[str, str]:
    """The variables that a scoring process gets: what any program needs, and those `named` by the configuration.

    A proxy whose address holds a password is left out, as is whatever has a secret's name.
    """
    return {name: value for name, value in environment.items() if name in named or _is_harmless(name.upper(), value)}


def check_named(environment: Mapping[str, str], named: Sequence[str]) -> None:
    """ConfigError when the configuration names a variable that is not set."""
    absent = [name for name in named if name not in environment]
    if absent:
        raise ConfigError(
            f"reward.verifier.environment names {', '.join(absent)}, which the trainer's environment does not have; "
            "export it before the run, or remove the name"
        )


def _is_harmless(name: str, value: str) -> bool:
    if name in _PROXIES:
        return "@" not in value
    return (name in _NAMES or name.startswith(_PREFIXES)) and _SECRET.search(name) is None
