from ghostvis_plugins import encoder, hookimpl


@hookimpl
def ghostvis_components():
    yield encoder("patchmean", config="ghostvis_patchmean.config:Config", build="ghostvis_patchmean.model:PatchMean")
