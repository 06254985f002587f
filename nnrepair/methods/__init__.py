"""Editors: one file each.

One row each in the table of tests/test_methods.py.
"""

from nnrepair.methods.base import LEGEND, REGISTRY, Capabilities, Method, Proposal, distinct, named, register, table
from nnrepair.methods.birdnn import BIRDNN
from nnrepair.methods.cali_net import CaliNet
from nnrepair.methods.cnp_conditioning import CNPConditioning
from nnrepair.methods.constrained import KeepZeros, OnGrid
from nnrepair.methods.editable_training import EditableTraining
from nnrepair.methods.egnn import EGNN
from nnrepair.methods.episodes import AnyEdits, Episode, RandomLabels
from nnrepair.methods.fine_tune.method import FineTune
from nnrepair.methods.grace import GRACE
from nnrepair.methods.hypernetworks.knowledge_editor import KnowledgeEditor
from nnrepair.methods.hypernetworks.malmen import MALMEN
from nnrepair.methods.hypernetworks.mend import MEND
from nnrepair.methods.learned_steps import LearnedSteps
from nnrepair.methods.least_squares.method import LeastSquares
from nnrepair.methods.minimal_norm.method import MinimalNorm
from nnrepair.methods.reassure import REASSURE
from nnrepair.methods.rewriting import Rewriting
from nnrepair.methods.serac import SERAC
from nnrepair.methods.t_patcher import TPatcher
from nnrepair.methods.trainable import Editor, Trainable

__all__ = [
    "BIRDNN",
    "EGNN",
    "GRACE",
    "LEGEND",
    "MALMEN",
    "MEND",
    "REASSURE",
    "REGISTRY",
    "SERAC",
    "AnyEdits",
    "CNPConditioning",
    "CaliNet",
    "Capabilities",
    "EditableTraining",
    "Editor",
    "Episode",
    "FineTune",
    "KeepZeros",
    "KnowledgeEditor",
    "LearnedSteps",
    "LeastSquares",
    "Method",
    "MinimalNorm",
    "OnGrid",
    "Proposal",
    "RandomLabels",
    "Rewriting",
    "TPatcher",
    "Trainable",
    "distinct",
    "named",
    "register",
    "table",
]
