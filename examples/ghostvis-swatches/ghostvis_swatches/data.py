import io
import random

import PIL.Image

from ghostvis_plugins.types import Conversation, Image, Length, assistant, user


class Swatches:
    """Two colours side by side, and a question about one of them."""

    def __init__(self, config, *, split):
        self.ids = [f"swatches/{split}/{index}" for index in range(config.size)]

    def __len__(self):
        return len(self.ids)

    def draw(self, index):
        random_ = random.Random(self.ids[index])
        colours, side = random_.sample(["red", "green", "blue", "yellow"], 2), random_.randrange(2)
        return colours, f"Which colour is on the {('left', 'right')[side]}?", colours[side]

    def __getitem__(self, index):
        colours, question, answer = self.draw(index)
        picture, png = PIL.Image.new("RGB", (64, 64), colours[0]), io.BytesIO()
        picture.paste(colours[1], (32, 0, 64, 64))
        picture.save(png, "PNG")
        return Conversation((user(Image(data=png.getvalue()), question), assistant(answer)), id=self.ids[index])

    def length(self, index):
        _, question, answer = self.draw(index)
        return Length(len((question + answer).encode()), images=1)
