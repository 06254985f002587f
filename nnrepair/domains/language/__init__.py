"""Language models and their facts."""

from nnrepair.domains.language.fluency import entropy, fluency
from nnrepair.domains.language.in_context import InContext, Told
from nnrepair.domains.language.knowledge import Relation, Statement, World
from nnrepair.domains.language.metrics import Survey, survey
from nnrepair.domains.language.networks import GPT2, Llama, Size
from nnrepair.domains.language.prompts import Prompts, asked, contexts, generated
from nnrepair.domains.language.recipes import recipe, trained
from nnrepair.domains.language.task import Change, task
from nnrepair.domains.language.training import train_language_model
from nnrepair.domains.language.words import Words

__all__ = [
    "GPT2",
    "Change",
    "InContext",
    "Llama",
    "Prompts",
    "Relation",
    "Size",
    "Statement",
    "Survey",
    "Told",
    "Words",
    "World",
    "asked",
    "contexts",
    "entropy",
    "fluency",
    "generated",
    "recipe",
    "survey",
    "task",
    "train_language_model",
    "trained",
]
