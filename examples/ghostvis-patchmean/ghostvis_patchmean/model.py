import torch
import torch.nn.functional as F


class PatchMean(torch.nn.Module):
    """Mean colours of 4 x 4 cells in each patch of 16 x 16 pixels, through a fixed random projection."""

    def __init__(self, config):
        super().__init__()
        self.image_size, self.tokens, self.out_dim = (16 * config.grid, 16 * config.grid), config.grid**2, config.dim
        self.register_buffer("projection", torch.empty(48, config.dim))

    def init_weights(self):
        self.projection.copy_(torch.randn(self.projection.shape, generator=torch.Generator().manual_seed(0)) / 7)

    def transform(self):
        return {"size": self.image_size, "fit": "stretch", "scale": [-1, 1]}

    def preprocess(self, image):
        pixels = torch.frombuffer(bytearray(image.resize(self.image_size).tobytes()), dtype=torch.uint8)
        return pixels.view(*self.image_size, 3).permute(2, 0, 1).float().contiguous() / 127.5 - 1

    def forward(self, pixels):
        return F.pixel_unshuffle(F.avg_pool2d(pixels, 4), 4).flatten(2).transpose(1, 2) @ self.projection
