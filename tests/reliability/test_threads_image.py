"""Image predictors and generators that threads share: calls are refused or equal to serial ones."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pytest
from torch import Tensor

from sam2_fast.image.automatic import SAM2AutomaticMaskGenerator
from sam2_fast.image.predictor import SAM2ImagePredictor
from tests.reliability.image_models import CLICK, answer, picture, predictor, shared_model
from tests.reliability.racing import race

Result = TypeVar("Result")
pytestmark = [pytest.mark.reliability("F3"), pytest.mark.reliability("37")]


def in_a_thread(call: Callable[[], Result]) -> Result:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(call).result(60)


class Slow(SAM2ImagePredictor):
    """A predictor that waits while it encodes."""

    encodes = threading.Event()
    may_go_on = threading.Event()

    def _encode_batch(self, batch: Tensor) -> dict[str, Any]:
        self.encodes.set()
        assert self.may_go_on.wait(60)
        return super()._encode_batch(batch)


@contextmanager
def while_it_encodes(call: Callable[[], Result]) -> Iterator[Future[Result]]:
    """Run the block while a thread makes the call, which waits in a `Slow` predictor."""
    Slow.encodes.clear()
    Slow.may_go_on.clear()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(call)
        try:
            assert Slow.encodes.wait(60)
            yield future
        finally:
            Slow.may_go_on.set()


CALLS: dict[str, Callable[[SAM2ImagePredictor], object]] = {
    "set_image": lambda p: p.set_image(picture(1)),
    "set_image_batch": lambda p: p.set_image_batch([picture(1)]),
    "predict": answer,
    "predict_batch": lambda p: p.predict_batch([[[1, 2]]], [[1]]),
    "_predict": lambda p: p._predict(None, None),
    "get_image_embedding": lambda p: p.get_image_embedding(),
    "reset_predictor": lambda p: p.reset_predictor(),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_during_another_one_raises_and_changes_nothing(name: str) -> None:
    image_predictor = Slow(shared_model())
    in_use = pytest.raises(RuntimeError, match=rf"^{name}: this predictor is in use")
    with while_it_encodes(lambda: image_predictor.set_image(picture())) as first, in_use:
        CALLS[name](image_predictor)
    first.result(60)
    expected = predictor()
    expected.set_image(picture())
    np.testing.assert_array_equal(answer(image_predictor), answer(expected))


def test_a_thread_does_not_get_masks_of_the_image_of_another_thread() -> None:
    image_predictor = predictor()
    image_predictor.set_image(picture(0))
    expected = answer(image_predictor)
    in_a_thread(lambda: image_predictor.set_image(picture(1)))
    for call in (answer, SAM2ImagePredictor.get_image_embedding):
        with pytest.raises(RuntimeError, match="another thread has set another image"):
            call(image_predictor)
    image_predictor.set_image(picture(0))
    np.testing.assert_array_equal(answer(image_predictor), expected)


def test_a_thread_may_use_an_image_that_another_one_has_set() -> None:
    image_predictor = predictor()
    in_a_thread(lambda: image_predictor.set_image(picture()))
    expected = answer(image_predictor)
    np.testing.assert_array_equal(in_a_thread(lambda: answer(image_predictor)), expected)


def test_a_program_that_orders_calls_itself_can_switch_the_check_off() -> None:
    image_predictor = predictor()
    image_predictor.set_image(picture(0))
    in_a_thread(lambda: image_predictor.set_image(picture(1)))
    image_predictor.check_threads = False
    expected = predictor()
    expected.set_image(picture(1))
    np.testing.assert_array_equal(answer(image_predictor), answer(expected))


def test_a_new_thread_is_not_one_that_has_ended() -> None:
    image_predictor = predictor()
    idents = set()
    for seed in range(4):
        threads = [
            threading.Thread(target=image_predictor.set_image, args=(picture(seed),)),
            threading.Thread(target=image_predictor.predict, kwargs=CLICK),
        ]
        for thread in threads:
            thread.start()
            idents.add(thread.ident)
            thread.join()
    assert len(image_predictor._images.setters.earlier) == 0
    answer(image_predictor)


def test_removing_the_image_ends_its_owner() -> None:
    image_predictor = predictor()
    image_predictor.set_image(picture(0))
    image_predictor.reset_predictor()
    in_a_thread(lambda: image_predictor.set_image(picture(1)))
    answer(image_predictor)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, copy.copy, lambda p: pickle.loads(pickle.dumps(p))]
)
def test_copies_have_the_image_and_no_owner(copied: Any) -> None:
    image_predictor = predictor()
    image_predictor.set_image(picture(0))
    other = copied(image_predictor)
    np.testing.assert_array_equal(answer(other), answer(image_predictor))
    if copied is not copy.copy:
        assert other._images.setters.current is None
        other.reset_predictor()
        assert image_predictor._is_image_set


def test_official_attributes_can_be_exchanged() -> None:
    image_predictor = predictor()
    image_predictor.set_image(picture(0))
    kept = image_predictor._features, image_predictor._orig_hw, image_predictor._is_image_set
    expected = answer(image_predictor)
    image_predictor.set_image(picture(1, 30, 20))
    image_predictor._features, image_predictor._orig_hw, image_predictor._is_image_set = kept
    np.testing.assert_array_equal(answer(image_predictor), expected)
    assert not hasattr(SAM2ImagePredictor, "_features")


class Overridden(SAM2ImagePredictor):
    def set_image(self, image: Any) -> None:
        super().set_image(image)
        self.embedding = self.get_image_embedding()

    def _predict(self, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
        assert self.get_image_embedding().shape == self.embedding.shape
        return super()._predict(*arguments, **options)


def test_methods_of_a_subclass_may_call_others() -> None:
    image_predictor, expected = Overridden(shared_model()), predictor()
    for each in (image_predictor, expected):
        each.set_image(picture())
    np.testing.assert_array_equal(answer(image_predictor), answer(expected))
    image_predictor.set_image_batch([picture()])
    image_predictor.predict_batch([[[1, 2]]], [[1]])


def generator(model: Any = None) -> SAM2AutomaticMaskGenerator:
    return SAM2AutomaticMaskGenerator(
        model or shared_model(), points_per_side=3, pred_iou_thresh=0.0, stability_score_thresh=0.0
    )


def test_a_generator_and_its_predictor_refuse_calls_while_it_generates() -> None:
    slow = generator()
    slow.predictor = Slow(shared_model())
    with while_it_encodes(lambda: slow.generate(picture())) as first:
        for call in (slow.generate, lambda image: slow.generate_batch([image])):
            with pytest.raises(RuntimeError, match="this generator is in use"):
                call(picture(1))
        with pytest.raises(RuntimeError, match=r"^set_image: this predictor is in use"):
            slow.predictor.set_image(picture(1))
    records = first.result(60)
    expected = generator().generate(picture())
    assert len(records) == len(expected) > 0
    for record, other in zip(records, expected, strict=True):
        np.testing.assert_array_equal(record["segmentation"], other["segmentation"])


def test_threads_may_use_one_generator_in_turn() -> None:
    shared = generator()
    for seed in (0, 1, 0):
        records = in_a_thread(lambda seed=seed: shared.generate(picture(seed)))
        assert len(records) == len(shared.generate(picture(seed)))


def test_a_generator_that_fails_leaves_the_image_of_its_predictor() -> None:
    failing = generator()
    failing.predictor.set_image(picture(1))
    expected = answer(failing.predictor)
    with pytest.raises(ValueError, match="image"):
        failing.generate_batch([picture(0), np.zeros((0, 4, 3), np.uint8)])
    np.testing.assert_array_equal(answer(failing.predictor), expected)
    failing.generate(picture(0))
    assert not failing.predictor._is_image_set


def test_of_racing_threads_each_gets_its_own_masks_or_an_error() -> None:
    """Without the guard, some results are those of another thread's image."""
    shared = predictor()
    expected = []
    for seed in range(4):
        shared.set_image(picture(seed))
        expected.append(answer(shared))
    shared.reset_predictor()
    refused: list[str] = []
    equal: list[bool] = []

    def use(seed: int) -> None:
        for _ in range(4):
            try:
                shared.set_image(picture(seed))
                result = answer(shared)
            except RuntimeError as error:
                refused.append(str(error))
            else:
                equal.append(np.array_equal(result, expected[seed]))

    race(*[partial(use, seed) for seed in range(4)])
    assert all(equal) and len(equal) + len(refused) == 16
    assert all("in use" in text or "another image" in text for text in refused)
    shared.set_image(picture(0))
    np.testing.assert_array_equal(answer(shared), expected[0])
