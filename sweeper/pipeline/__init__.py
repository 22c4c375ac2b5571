"""The stages of dvc.yaml: `python -m sweeper.pipeline STAGE`, run by `dvc repro` (docs/pipeline.md).

    params.yaml + conf/ -> compose -> prepare, model -> sweep -> select -> evaluate -> report

Guarantees: a stage reads what dvc.yaml says it depends on and writes what dvc.yaml says it makes, whole or not at all;
a sweep goes on where it was; DVC itself is never imported, and heavy packages only by the stages that need them. What
the stages hand to each other holds no absolute path, so that it is the same in every checkout.
"""
