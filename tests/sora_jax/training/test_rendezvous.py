import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from data_pipeline.errors import UserError
from sora_jax.training.rendezvous import Place, meet, split_address
from tests.sora_jax.training.processes import free_port


def outcomes(*places: Place, timeout_s: float) -> list[str | None]:
    """What each process hears when all of these meet: None for success, else its error."""

    def outcome(place: Place) -> str | None:
        try:
            return meet(place, timeout_s)
        except UserError as error:
            return f"{error.exit_code}: {error}"

    with ThreadPoolExecutor(len(places)) as pool:
        return list(pool.map(outcome, places))


@pytest.fixture
def address() -> str:
    return f"127.0.0.1:{free_port()}"


def test_all_meet_whoever_comes_first(address):
    assert outcomes(*(Place(address, 3, number) for number in (2, 1, 0)), timeout_s=60) == [None] * 3


def test_whoever_is_missing_is_named_to_all(address):
    heard = outcomes(Place(address, 3, 0), Place(address, 3, 2), timeout_s=2)
    assert heard[0] == heard[1]
    assert f"76: process(es) 1 of 3 did not come to {address} within 2 s" in heard[0]


def test_an_address_where_nobody_listens_is_named_with_the_system_s_reason(address):
    (heard,) = outcomes(Place(address, 2, 1), timeout_s=0.2)
    assert f"76: process 1 could not reach process 0 at {address} within 0.2 s" in heard and "refused" in heard


def test_a_host_that_does_not_exist_is_named(address):
    (heard,) = outcomes(Place("no-such-host.invalid:8476", 2, 1), timeout_s=0.2)
    assert "could not reach process 0 at no-such-host.invalid:8476" in heard


def test_an_address_where_another_program_listens_is_an_error_on_both_sides(address):
    with socket.create_server(("", int(address.rsplit(":", 1)[1]))):
        (heard,) = outcomes(Place(address, 2, 0), timeout_s=1)
    assert "cannot listen on port" in heard and "choose a free port" in heard


def test_two_with_the_same_number_are_told_so(address):
    heard = outcomes(*(Place(address, 3, number) for number in (0, 1, 1)), timeout_s=60)
    assert all("2: two processes say that they are process 1" in text for text in heard)


def test_two_that_were_told_of_different_numbers_are_told_both(address):
    heard = outcomes(Place(address, 2, 0), Place(address, 4, 1), timeout_s=60)
    assert all("told of 2 processes, process 1 on" in text and "of 4" in text for text in heard)


def test_a_stranger_at_the_door_is_ignored(address):
    port = int(address.rsplit(":", 1)[1])
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(meet, Place(address, 2, 0), 60)
        while True:
            try:
                stranger = socket.create_connection(("127.0.0.1", port))
                break
            except ConnectionRefusedError:
                assert not first.done()
        with stranger:
            stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
            meet(Place(address, 2, 1), 60)
        assert first.result() is None


@pytest.mark.parametrize("address", ["node1", "node1:", ":8476", "node1:port", "node1:70000", "node1:0"])
def test_an_address_that_is_none_says_what_one_looks_like(address):
    with pytest.raises(UserError, match="must be host:port, such as node1:8476"):
        split_address(address)


def test_addresses_of_both_kinds_are_split():
    assert split_address("node1:8476") == ("node1", 8476)
    assert split_address("[2001:db8::1]:8476") == ("2001:db8::1", 8476)
