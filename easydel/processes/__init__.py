"""The processes of a job that `jax.distributed` joins: they agree, they fail together, and they notice who is gone."""

from easydel.processes.agreement import agree, check_inputs, digest
from easydel.processes.outcome import await_processes, one_outcome, put_together
from easydel.processes.signs import losses_told

__all__ = ["agree", "await_processes", "check_inputs", "digest", "losses_told", "one_outcome", "put_together"]
