"""The CODE client with a CPU that really translates: whoever writes code, what runs afterwards is the new code."""

from __future__ import annotations

import random
import threading
import time

import pytest

from precopy.bitmap import Bitmap
from precopy.errors import GuestError
from precopy.machines.workload import BURST_PORT, CODE_GPA, Workload, params, params_gpa
from precopy.memory import RamLayout
from precopy.memory.captures.machines import flat
from precopy.memory.topology.log_mask import DirtyClient
from precopy.units import PAGE_SIZE
from support.code_guests import DATA, OTHER, CodeGuest, assembled, immediate
from support.patience import IN_TIME_S

pytestmark = [pytest.mark.needs("unicorn")]

LAYOUT = flat(4 << 20)
SPIN = "spin: jmp spin"
AGAIN, BACK = CODE_GPA + 0x40, CODE_GPA + 0x80
"""Where loops begin, and where a function returns to."""
PROTECTED = [pytest.param(True, id="protected"), pytest.param(False, id="unprotected")]

# What is patched, and where its immediate is.
MOV = "mov ecx, 0x11111111"
IN_BLOCK = immediate(MOV, immediate("mov dword ptr [0x1000], 0x22222222", CODE_GPA) + 4)
IN_OTHER = immediate(MOV, OTHER)
SECOND = OTHER + 0x800
IN_SECOND = immediate("mov edx, 0x11111111", SECOND)


class TestGuestThatOverwritesItself:
    """Unicorn does this by itself where pages with code stay executable; we must not take that from it."""

    @pytest.mark.parametrize("protect", PROTECTED)
    def test_the_next_instruction_of_the_same_block(self, protect: bool) -> None:
        program = f"mov dword ptr [{IN_BLOCK:#x}], 0x22222222; {MOV}; mov qword ptr [{DATA:#x}], rcx; {SPIN}"
        with CodeGuest(LAYOUT, {CODE_GPA: program}, protect) as guest:
            assert guest.runs_until(lambda: guest.word(0) != 0)
            assert guest.word(0) == 0x22222222

    @pytest.mark.parametrize("protect", PROTECTED)
    def test_another_page_again_and_again(self, protect: bool) -> None:
        rounds = 2000
        programs = {
            CODE_GPA: f"xor ebx, ebx; xor esi, esi; jmp {AGAIN:#x}",
            AGAIN: f"inc ebx; mov dword ptr [{IN_OTHER:#x}], ebx; mov eax, {OTHER:#x}; jmp rax",
            OTHER: f"{MOV}; mov edi, {BACK:#x}; jmp rdi",
            BACK: f"add rsi, rcx; cmp ebx, {rounds}; jne {AGAIN:#x}; mov qword ptr [{DATA:#x}], rsi; {SPIN}",
        }
        with CodeGuest(LAYOUT, programs, protect) as guest:
            assert guest.runs_until(lambda: guest.word(0) != 0)
            assert guest.word(0) == rounds * (rounds + 1) // 2

    @pytest.mark.parametrize("protect", PROTECTED)
    def test_two_functions_of_a_page_in_one_go(self, protect: bool) -> None:
        """The second store goes to a page that is writable by then: it has to be noticed all the same."""
        call = "mov edi, {back:#x}; mov eax, {target:#x}; jmp rax"
        at = [CODE_GPA + 0x100 * n for n in range(5)]
        patch = "; ".join(f"mov dword ptr [{where:#x}], 0x22222222" for where in (IN_OTHER, IN_SECOND))
        programs = {
            at[0]: call.format(back=at[1], target=OTHER),
            at[1]: call.format(back=at[2], target=SECOND),
            at[2]: f"{patch}; {call.format(back=at[3], target=OTHER)}",
            at[3]: call.format(back=at[4], target=SECOND),
            at[4]: f"mov qword ptr [{DATA + 8:#x}], rdx; mov qword ptr [{DATA:#x}], rcx; {SPIN}",
            OTHER: f"{MOV}; jmp rdi",
            SECOND: "mov edx, 0x11111111; jmp rdi",
        }
        with CodeGuest(LAYOUT, programs, protect) as guest:
            assert guest.runs_until(lambda: guest.word(0) != 0)
            assert (guest.word(0), guest.word(1)) == (0x22222222, 0x22222222)

    def test_its_code_bit_is_set_at_the_next_stop_and_a_migration_hears_of_it(self) -> None:
        program = f"mov dword ptr [{IN_BLOCK:#x}], 0x22222222; {MOV}; mov qword ptr [{DATA:#x}], rcx; jmp {OTHER:#x}"
        with CodeGuest(LAYOUT, {CODE_GPA: program, OTHER: SPIN}) as guest:
            assert guest.runs_until(lambda: guest.word(0) != 0)
            dirty = guest.guest.dirty
            assert dirty.count(DirtyClient.CODE, guest.page(CODE_GPA), 1) == 1
            assert dirty.count(DirtyClient.CODE, guest.page(OTHER), 1) == 0
            found = Bitmap(LAYOUT.end_page)
            dirty.logs[0].harvest(found)
            assert {guest.page(CODE_GPA), guest.page(DATA)} <= set(found.indexes().tolist())


LOOPING = {
    CODE_GPA: f"mov rax, [{DATA + 8:#x}]; mov edx, {OTHER:#x}; jmp rdx",
    OTHER: f"{MOV}; mov edi, {BACK:#x}; jmp rdi",
    BACK: f"mov qword ptr [{DATA:#x}], rcx; mov qword ptr [{DATA + 16:#x}], rax; jmp {CODE_GPA:#x}",
}
"""Reads word 1, which a device sets, runs code of another page, and answers in word 0; word 2 says for which word 1."""


class TestDeviceThatWritesCode:
    """What Unicorn cannot hear of."""

    def test_new_code_runs_once_the_device_has_said_so(self) -> None:
        with CodeGuest(LAYOUT, LOOPING) as guest:
            guest.guest.resume()
            assert guest.until(lambda: guest.word(0) == 0x11111111)
            for value in range(1, 300):
                guest.device_writes(IN_OTHER, value)
                guest.set_word(1, value)  # the interrupt, so to speak
                assert guest.until(lambda value=value: guest.word(2) == value)
                assert guest.word(0) == value
            guest.guest.pause()

    def test_without_the_client_the_old_translation_goes_on_running(self) -> None:
        with CodeGuest(LAYOUT, LOOPING, protect_code=False) as guest:
            guest.guest.resume()
            assert guest.until(lambda: guest.word(0) == 0x11111111)
            guest.device_writes(IN_OTHER, 0x22222222)
            for number in range(1, 4):
                guest.set_word(1, number)
                assert guest.until(lambda number=number: guest.word(2) == number)
                assert guest.word(0) == 0x11111111  # though memory holds something else
                guest.guest.pause()
                guest.guest.resume()
            guest.guest.pause()

    def test_new_code_runs_also_after_a_pause(self) -> None:
        with CodeGuest(LAYOUT, LOOPING) as guest:
            for value in range(1, 30):
                guest.device_writes(IN_OTHER, value)
                assert guest.runs_until(lambda value=value: guest.word(0) == value)

    def test_while_the_cpu_waits_for_its_next_burst(self) -> None:
        """It rests in a hook then, in the middle of a block whose next one is linked to it."""
        answer = f"mov [{DATA:#x}], rcx; mov [{DATA + 16:#x}], rax; inc qword ptr [{DATA + 24:#x}]"
        read = f"mov rax, [{DATA + 8:#x}]"
        programs = {
            CODE_GPA: f"{answer}; out {BURST_PORT}, al; jmp {AGAIN:#x}",
            AGAIN: f"{read}; {MOV}; jmp {CODE_GPA:#x}",
        }
        where = immediate(MOV, AGAIN + len(assembled(read, AGAIN)))
        with CodeGuest(LAYOUT, programs) as guest:
            guest.bytes(params_gpa(0) + params.INTERVAL_NS, 8).view("u8")[0] = 2_000_000
            guest.guest.resume()
            for value in range(1, 100):
                rounds = guest.word(3) + 2  # after so many, the blocks are linked
                assert guest.until(lambda rounds=rounds: guest.word(3) >= rounds)
                guest.device_writes(where, value)
                guest.set_word(1, value)
                assert guest.until(lambda value=value: guest.word(2) == value)
                assert guest.word(0) == value
            guest.guest.pause()

    def test_a_write_beside_code_stops_nobody(self) -> None:
        with CodeGuest(LAYOUT, LOOPING) as guest:
            assert guest.runs_until(lambda: guest.word(0) != 0)
            client = guest.guest._tlb.code
            assert client is not None
            before = client.invalidations
            guest.guest.dirty.set_range(guest.page(DATA), 1)
            assert client.invalidations == before
            guest.guest.dirty.set_range(0, LAYOUT.end_page)
            assert client.invalidations == before + 2
            assert guest.guest.dirty.count(DirtyClient.CODE) == LAYOUT.pages

    def test_a_bitmap_of_writes_counts_too(self) -> None:
        with CodeGuest(LAYOUT, LOOPING) as guest:
            assert guest.runs_until(lambda: guest.word(0) != 0)
            guest.bytes(IN_OTHER, 4)[:] = 0x33
            page = guest.page(IN_OTHER)
            found = Bitmap.from_indexes(64, [page % 64])
            guest.guest.dirty.set_from(found, at=page // 64 * 64)
            assert guest.runs_until(lambda: guest.word(0) == 0x33333333)

    def test_booting_another_program_is_a_write_as_well(self) -> None:
        with CodeGuest(LAYOUT, {}) as guest:
            for pattern in ("sequential", "random", "sequential"):
                guest.guest.boot(Workload(pattern, rate=None))
                guest.guest.resume()
                time.sleep(0.02)
                guest.guest.pause()
                found = guest.guest.self_check()
                assert found.ok
                assert found.steps > 0


class TestCodeBits:
    def test_all_are_set_until_something_runs(self) -> None:
        with CodeGuest(LAYOUT, LOOPING) as guest:
            dirty = guest.guest.dirty
            assert dirty.count(DirtyClient.CODE) == LAYOUT.pages
            assert guest.runs_until(lambda: guest.word(0) != 0)
            assert dirty.count(DirtyClient.CODE) == LAYOUT.pages - 2
            for page in (CODE_GPA, OTHER):
                assert dirty.count(DirtyClient.CODE, guest.page(page), 1) == 0

    def test_code_across_two_pages_protects_both(self) -> None:
        start = OTHER + PAGE_SIZE - 2
        with CodeGuest(LAYOUT, {CODE_GPA: f"jmp {start:#x}", start: f"{MOV}; mov [{DATA:#x}], rcx; {SPIN}"}) as guest:
            assert guest.runs_until(lambda: guest.word(0) != 0)
            assert guest.guest.dirty.count(DirtyClient.CODE, guest.page(OTHER), 2) == 0

    def test_a_page_with_code_and_data_keeps_both(self) -> None:
        """The guest counts in the page that it runs in, and a device writes the code there meanwhile."""
        count, where = OTHER + 0x400, immediate(MOV, OTHER)
        program = f"again: {MOV}; inc qword ptr [{count:#x}]; mov qword ptr [{DATA:#x}], rcx; jmp again"
        with CodeGuest(LAYOUT, {CODE_GPA: f"jmp {OTHER:#x}", OTHER: program}) as guest:
            guest.guest.resume()
            for value in range(1, 100):
                guest.device_writes(where, value)
                assert guest.until(lambda value=value: guest.word(0) == value)
            guest.guest.pause()
            assert guest.bytes(count, 8).view("u8")[0] > 100


@pytest.mark.parametrize("use", ["mov rax, [rdx]", "mov [rdx], rax", "jmp rdx"])
@pytest.mark.parametrize("protect", PROTECTED)
def test_where_no_ram_is_the_guest_ends_with_a_sentence(use: str, protect: bool) -> None:
    with CodeGuest(LAYOUT, {CODE_GPA: f"mov edx, 0x7ffff000; {use}"}, protect) as guest:
        guest.guest.resume()
        assert guest.until(lambda: guest.guest.error is not None)
        with pytest.raises(GuestError, match="the guest used the address 0x7ffff000, where no RAM is"):
            guest.guest.pause()


class TestPageThatIsMappedTwice:
    """Unicorn keeps translations by address: a store through another mapping of the page hits none of them."""

    ALIAS, DATA = 0x800000, 0x400000

    def layout(self) -> RamLayout:
        mib = 1 << 20
        places = [("low", 0), ("code", OTHER), ("code", self.ALIAS), ("data", self.DATA)]
        blocks = RamLayout.of_blocks([(name, mib) for name in ("low", "code", "data")])
        return blocks.mapped([(name, 0, mib, gpa) for name, gpa in places])

    @pytest.mark.parametrize("protect", PROTECTED)
    def test_the_guest_writes_code_through_the_other_mapping(self, protect: bool) -> None:
        rounds, alias = 300, self.ALIAS + IN_OTHER - OTHER
        programs = {
            CODE_GPA: f"xor ebx, ebx; xor esi, esi; jmp {AGAIN:#x}",
            AGAIN: f"inc ebx; mov eax, {alias:#x}; mov dword ptr [rax], ebx; mov eax, {OTHER:#x}; jmp rax",
            OTHER: f"{MOV}; mov edi, {BACK:#x}; jmp rdi",
            BACK: f"add rsi, rcx; cmp ebx, {rounds}; jne {AGAIN:#x}; mov qword ptr [{self.DATA:#x}], rsi; {SPIN}",
        }
        with CodeGuest(self.layout(), programs, protect) as guest:
            answer = guest.bytes(self.DATA, 8).view("u8")
            assert guest.runs_until(lambda: answer[0] != 0)
            assert (answer[0] == rounds * (rounds + 1) // 2) == protect


def test_devices_and_a_migration_at_once_stop_one_cpu() -> None:
    """Every thread that has to stop the CPU does, whoever holds which lock."""
    with CodeGuest(LAYOUT, LOOPING) as guest:
        dirty = guest.guest.dirty
        dirty.start()
        guest.guest.resume()
        assert guest.until(lambda: guest.word(0) != 0)
        failed: list[BaseException] = []

        def device(seed: int) -> None:
            rng = random.Random(seed)
            try:
                for _ in range(150):
                    dirty.set_range(guest.page(rng.choice([OTHER, CODE_GPA, DATA])), 1)
            except BaseException as error:
                failed.append(error)

        def migration() -> None:
            try:
                for _ in range(150):
                    dirty.sync()
                    dirty.test_and_clear(DirtyClient.MIGRATION, 0, LAYOUT.end_page)
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=device, args=(seed,)) for seed in range(2)]
        threads.append(threading.Thread(target=migration))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(IN_TIME_S)
            assert not thread.is_alive()
        assert not failed
        guest.device_writes(IN_OTHER, 7)
        assert guest.until(lambda: guest.word(0) == 7)
        guest.guest.pause()
