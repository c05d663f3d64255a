"""pythae's VAE under its default trainer: `python pythae_vae.py DEVICE DATA LATENT`; its MLP has 512 hidden units."""

import sys
import tempfile

import numpy as np
import torch
from pythae.data.datasets import BaseDataset
from pythae.models import VAE, VAEConfig
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from pythae.trainers.training_callbacks import TrainingCallback
from torch_laps import laps_on

BATCH = 128


def main() -> None:
    """Train for ever; a round is a batch."""
    device, path, latent = sys.argv[1:]
    laps = laps_on(device)
    pixels = np.load(path)
    data = torch.from_numpy(pixels).float() / pixels.max()

    class Epochs(TrainingCallback):
        def on_epoch_end(self, training_config, **kwargs) -> None:
            laps(len(data) // BATCH)

    model = VAE(VAEConfig(input_dim=tuple(data.shape[1:]), latent_dim=int(latent), reconstruction_loss="bce"))
    with tempfile.TemporaryDirectory() as folder:
        config = BaseTrainerConfig(
            output_dir=folder,
            num_epochs=10**9,
            per_device_train_batch_size=BATCH,
            learning_rate=1e-3,
            no_cuda=device == "cpu",
        )
        dataset = BaseDataset(data, torch.zeros(len(data)))
        BaseTrainer(model, dataset, training_config=config, callbacks=[Epochs()]).train()


if __name__ == "__main__":
    main()
