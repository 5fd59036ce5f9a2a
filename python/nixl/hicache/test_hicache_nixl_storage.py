"""The tests that the guide of the connector lists, run by its command lines:

    PYTHONPATH=. python -m pytest test_hicache_nixl_storage.py -v -o asyncio_mode=strict
    python -m unittest nixl.hicache.test_hicache_nixl_storage.TestNixlUnified -v

The package nixl must be importable (installed, or the build tree on PYTHONPATH). Further tests of
the connector are in tests/python/hicache.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import unittest

try:
    import torch
except ImportError as error:
    raise unittest.SkipTest("these tests need torch") from error

from nixl.hicache.hicache_nixl import HiCacheNixl
from nixl.hicache.nixl_utils import NixlFileManager, NixlRegistration


class TestNixlUnified(unittest.TestCase):
    """Set and get, files, and registration, over the POSIX backend."""

    def setUp(self) -> None:
        self.test_dir = tempfile.mkdtemp(prefix="test_nixl_unified_")
        self.hicache = HiCacheNixl(file_path=self.test_dir, plugin="POSIX")
        self.file_manager = NixlFileManager(self.test_dir)
        self.registration = NixlRegistration(self.hicache.agent)

    def tearDown(self) -> None:
        self.hicache.close()
        shutil.rmtree(self.test_dir, ignore_errors=True)

    def delete_test_file(self, file_path: str) -> bool:
        """Removes a file if it is there; False, with the reason printed, if that fails."""
        try:
            if os.path.exists(file_path):
                os.remove(file_path)
            return True
        except OSError as error:
            print(f"remove {file_path}: {error}")
            return False

    def verify_tensors_equal(self, expected: torch.Tensor, actual: torch.Tensor) -> None:
        self.assertIsNotNone(actual, "no tensor came back")
        self.assertEqual(expected.shape, actual.shape)
        self.assertEqual(expected.dtype, actual.dtype)
        self.assertTrue(torch.equal(expected, actual), "the tensors differ")

    def verify_tensor_lists_equal(
        self, expected: list[torch.Tensor], actual: list[torch.Tensor]
    ) -> None:
        self.assertEqual(len(expected), len(actual))
        for one, other in zip(expected, actual, strict=True):
            self.verify_tensors_equal(one, other)

    # -- set and get ---------------------------------------------------------------------------

    def test_single_set_get(self) -> None:
        value = torch.randn(10, 10)
        target = torch.zeros_like(value)
        self.assertFalse(self.hicache.exists("test_key"))
        self.assertTrue(self.hicache.set("test_key", value))
        self.assertTrue(self.hicache.exists("test_key"))
        self.verify_tensors_equal(value, self.hicache.get("test_key", target))
        self.verify_tensors_equal(value, target)

        size = value.numel() * value.element_size()
        self.assertTrue(self.hicache.set("by_address", None, value.data_ptr(), size))
        second = torch.zeros_like(value)
        self.assertEqual(self.hicache.get("by_address", second.data_ptr(), size), second.data_ptr())
        self.verify_tensors_equal(value, second)
        self.assertIsNone(self.hicache.get("never_set", target))

    def test_batch_set_get(self) -> None:
        keys = ["key1", "key2", "key3"]
        values = [torch.randn(5, 5), torch.randn(3, 3), torch.randn(7, 7)]
        self.assertTrue(self.hicache.batch_set(keys, values))
        targets = [torch.zeros_like(value) for value in values]
        self.verify_tensor_lists_equal(values, self.hicache.batch_get(keys, targets))
        self.verify_tensor_lists_equal(values, targets)

        sizes = [value.numel() * value.element_size() for value in values]
        others = [key + "_address" for key in keys]
        pointers = [value.data_ptr() for value in values]
        self.assertTrue(self.hicache.batch_set(others, None, pointers, sizes))
        targets = [torch.zeros_like(value) for value in values]
        found = self.hicache.batch_get(others, [t.data_ptr() for t in targets], sizes)
        self.assertNotIn(None, found)
        self.verify_tensor_lists_equal(values, targets)

    def test_mixed_operations(self) -> None:
        single = torch.randn(4, 4)
        self.assertTrue(self.hicache.set("key1", single))
        keys, values = ["key2", "key3"], [torch.randn(2, 2), torch.randn(8, 1)]
        self.assertTrue(self.hicache.batch_set(keys, values))
        everything = [single, *values]
        for key, value in zip(["key1", *keys], everything, strict=True):
            self.verify_tensors_equal(value, self.hicache.get(key, torch.zeros_like(value)))
        targets = [torch.zeros_like(value) for value in everything]
        self.verify_tensor_lists_equal(everything, self.hicache.batch_get(["key1", *keys], targets))

    def test_data_integrity(self) -> None:
        cases = {
            "float32": torch.randn(10, 10),
            "float64": torch.randn(10, 10, dtype=torch.float64),
            "int32": torch.randint(-1000, 1000, (10, 10), dtype=torch.int32),
            "int64": torch.randint(-1000, 1000, (10, 10), dtype=torch.int64),
            "large": torch.randn(1000, 1000),
            "nan": torch.tensor([float("inf"), -0.0, 1e-45]),
        }
        for key, value in cases.items():
            with self.subTest(key):
                self.assertTrue(self.hicache.set(key, value))
                self.verify_tensors_equal(value, self.hicache.get(key, torch.zeros_like(value)))

    # -- files ---------------------------------------------------------------------------------

    def test_basic_file_operations(self) -> None:
        path = self.file_manager.get_file_path("test_file")
        self.assertTrue(self.file_manager.create_file(path))
        self.assertTrue(os.path.exists(path))
        descriptor = self.file_manager.open_file(path)
        self.assertIsNotNone(descriptor)
        self.assertTrue(self.file_manager.close_file(descriptor))
        self.assertTrue(self.delete_test_file(path))

    def test_create_nixl_tuples(self) -> None:
        paths = [self.file_manager.get_file_path(f"tuple_{i}") for i in range(3)]
        for i, path in enumerate(paths):
            with open(path, "wb") as file:
                file.write(b"x" * (i + 1))
        tuples = self.file_manager.files_to_nixl_tuples(paths)
        self.assertEqual([path for *_, path in tuples], paths)
        for i, (offset, length, descriptor, _) in enumerate(tuples):
            self.assertEqual((offset, length), (0, i + 1))
            self.assertEqual(os.fstat(descriptor).st_size, i + 1)
            self.assertTrue(self.file_manager.close_file(descriptor))

    def test_error_handling(self) -> None:
        self.assertIsNone(self.file_manager.open_file(os.path.join(self.test_dir, "nothing")))
        self.assertFalse(self.file_manager.create_file(""))
        self.assertFalse(self.file_manager.close_file(-1))
        self.assertFalse(self.hicache.batch_set(["one", "two"], [torch.zeros(1)]))
        self.assertFalse(self.hicache.set("nothing"))
        with self.assertRaises(ValueError):
            self.hicache.get("key")

    # -- registration --------------------------------------------------------------------------

    def test_register_buffers(self) -> None:
        tensor = torch.randn(10, 10)
        self.assertIsNotNone(self.hicache.register_buffers(tensor))
        self.assertIsNotNone(self.hicache.register_buffers([torch.randn(5, 5), torch.randn(3, 3)]))
        other = torch.zeros(64, dtype=torch.uint8)
        self.assertIsNotNone(self.hicache.register_buffers([(other.data_ptr(), 64)]))
        self.assertIsNotNone(self.registration.register_buffers(tensor))

    def test_register_files_with_tuples(self) -> None:
        paths = [self.file_manager.get_file_path(f"registered_{i}") for i in range(3)]
        for path in paths:
            self.assertTrue(self.file_manager.create_file(path))
            os.truncate(path, 4096)
        tuples = self.file_manager.files_to_nixl_tuples(paths)
        self.assertEqual(len(tuples), 3)
        registered = self.hicache.register_files(tuples)
        self.assertIsNotNone(registered)
        self.registration.deregister(registered)
        for _, _, descriptor, _ in tuples:
            self.file_manager.close_file(descriptor)
        self.assertIsNotNone(self.hicache.register_files(paths))


if __name__ == "__main__":
    unittest.main()
