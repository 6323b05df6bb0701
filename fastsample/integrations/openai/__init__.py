"""Networks and checkpoints of OpenAI's improved-diffusion and guided-diffusion, and their forks.

Neither project needs to be installed: `denoiser` takes the network and the flags that it was
trained with, `grid` is their `timestep_respacing`, `load_weights` reads their checkpoints, and the
two classifier functions are their `cond_fn`.
"""

from fastsample.integrations.openai.classifier import classifier_ancestral as classifier_ancestral
from fastsample.integrations.openai.classifier import classifier_guided as classifier_guided
from fastsample.integrations.openai.model import denoiser as denoiser
from fastsample.integrations.openai.model import grid as grid
from fastsample.integrations.openai.weights import load_weights as load_weights

__all__ = ["classifier_ancestral", "classifier_guided", "denoiser", "grid", "load_weights"]
