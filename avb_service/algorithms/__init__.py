"""The table of methods: name -> class. A new method is one file here, one line below, one preset.

Floor 3.
"""

from avb_service.algorithm import Algorithm, AlgorithmConfig
from avb_service.algorithms.aae import AAE
from avb_service.algorithms.ae_gmm import AutoencoderMixture
from avb_service.algorithms.ali import ALI
from avb_service.algorithms.avb import AVB
from avb_service.algorithms.avb_ac import AVBAC
from avb_service.algorithms.avb_joint import AVBJoint
from avb_service.algorithms.bernoulli_vae import BernoulliVAE
from avb_service.algorithms.cyclegan import CycleGAN
from avb_service.algorithms.f_gan import FGAN
from avb_service.algorithms.flow_vae import FlowVAE
from avb_service.algorithms.gan import GAN
from avb_service.algorithms.gumbel_vae import GumbelVAE
from avb_service.algorithms.iaf_vae import IAFVAE
from avb_service.algorithms.infogan import InfoGAN
from avb_service.algorithms.iwae import IWAE
from avb_service.algorithms.lsgan import LSGAN
from avb_service.algorithms.sbn_mean_field import MeanFieldSBN
from avb_service.algorithms.sbn_wake_sleep import WakeSleepSBN
from avb_service.algorithms.vae import VAE
from avb_service.algorithms.vq_vae import VQVAE
from avb_service.kinds import Table, subclass_of


def _objection(name: str, found: object) -> str | None:
    """What is no method, or has no strict section of its name."""
    return subclass_of(Algorithm)(name, found) or subclass_of(AlgorithmConfig)(name, getattr(found, "Config", None))


METHODS: Table[type[Algorithm]] = Table(
    "methods",
    {
        "aae": AAE,
        "ae_gmm": AutoencoderMixture,
        "ali": ALI,
        "avb": AVB,
        "avb_ac": AVBAC,
        "avb_joint": AVBJoint,
        "bernoulli_vae": BernoulliVAE,
        "cyclegan": CycleGAN,
        "f_gan": FGAN,
        "flow_vae": FlowVAE,
        "gan": GAN,
        "gumbel_vae": GumbelVAE,
        "iaf_vae": IAFVAE,
        "infogan": InfoGAN,
        "iwae": IWAE,
        "lsgan": LSGAN,
        "sbn_mean_field": MeanFieldSBN,
        "sbn_wake_sleep": WakeSleepSBN,
        "vae": VAE,
        "vq_vae": VQVAE,
    },
    _objection,
)
