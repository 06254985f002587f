"""The property checker.

Is something true of every point of a region? Sound, complete up to rounding, with proofs.

result = nnrepair.verify.check(model, Property.on(Box(lower, upper), nnrepair.Argmax([3]), outputs=10))
result.verdict, result.counterexample, result.certificate
"""

from nnrepair.verify import vnnlib
from nnrepair.verify.certificate import PropertyCertificate
from nnrepair.verify.check import check
from nnrepair.verify.compare import compare
from nnrepair.verify.comparing.certificate import ComparisonCertificate, EquivalenceCertificate
from nnrepair.verify.comparing.evidence import Moment, Subject, Witness
from nnrepair.verify.comparing.result import Comparison, Equivalence
from nnrepair.verify.equivalent import equivalent
from nnrepair.verify.property import Box, Case, Halfspace, Property
from nnrepair.verify.result import CheckResult, Counterexample
from nnrepair.verify.search.jobs import Options

__all__ = ["Box", "Case", "CheckResult", "Counterexample", "Halfspace", "Options", "Property", "PropertyCertificate"]
__all__ += [
    "Comparison",
    "ComparisonCertificate",
    "Equivalence",
    "EquivalenceCertificate",
    "Moment",
    "Subject",
    "Witness",
    "check",
]
__all__ += ["compare", "equivalent", "vnnlib"]
