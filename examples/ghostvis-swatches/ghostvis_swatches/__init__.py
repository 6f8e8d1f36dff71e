from ghostvis_plugins import dataset, hookimpl


@hookimpl
def ghostvis_components():
    yield dataset("swatches", config="ghostvis_swatches.config:Config", build="ghostvis_swatches.data:Swatches")
