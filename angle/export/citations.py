"""The papers behind a model, as BibTeX."""

from __future__ import annotations

ANGLE = """@article{li2023angle,
  title={AnglE-optimized Text Embeddings},
  author={Li, Xianming and Li, Jing},
  journal={arXiv preprint arXiv:2309.12871},
  year={2023}
}"""
ESPRESSO = """@inproceedings{li2025ese,
  title={{ESE}: Espresso Sentence Embeddings},
  author={Li, Xianming and Li, Zongxi and Li, Jing and Xie, Haoran and Li, Qing},
  booktitle={The Thirteenth International Conference on Learning Representations},
  year={2025},
  url={https://openreview.net/forum?id=plgLA2YBLH}
}"""
BILLM = """@inproceedings{li2024bellm,
  title={{BeLLM}: Backward Dependency Enhanced Large Language Model for Sentence Embeddings},
  author={Li, Xianming and Li, Jing},
  booktitle={Proceedings of the 2024 Conference of the North American Chapter of the Association for Computational
    Linguistics: Human Language Technologies},
  year={2024}
}"""
LORA = """@inproceedings{hu2022lora,
  title={{LoRA}: Low-Rank Adaptation of Large Language Models},
  author={Hu, Edward J. and Shen, Yelong and Wallis, Phillip and Allen-Zhu, Zeyuan and Li, Yuanzhi and Wang, Shean and
    Wang, Lu and Chen, Weizhu},
  booktitle={International Conference on Learning Representations},
  year={2022}
}"""

SOUP = """@inproceedings{wortsman2022soups,
  title={Model soups: averaging weights of multiple fine-tuned models improves accuracy without increasing inference
    time},
  author={Wortsman, Mitchell and Ilharco, Gabriel and Gadre, Samir Ya and Roelofs, Rebecca and Gontijo-Lopes, Raphael
    and Morcos, Ari S. and Namkoong, Hongseok and Farhadi, Ali and Carmon, Yair and Kornblith, Simon and Schmidt,
    Ludwig},
  booktitle={International Conference on Machine Learning},
  year={2022}
}"""
COCKTAIL = """@article{xiao2023cocktail,
  title={{LM-Cocktail}: Resilient Tuning of Language Models via Model Merging},
  author={Xiao, Shitao and Liu, Zheng and Zhang, Peitian and Xing, Xingrun},
  journal={arXiv preprint arXiv:2311.13534},
  year={2023}
}"""


def citations(*, espresso: bool, billm: bool, lora: bool, soup: bool = False, cocktail: bool = False) -> list[str]:
    """Return the entries of AnglE and of what else a model was trained with."""
    used = ((ANGLE, True), (ESPRESSO, espresso), (BILLM, billm), (LORA, lora), (SOUP, soup), (COCKTAIL, cocktail))
    return [entry for entry, is_used in used if is_used]
