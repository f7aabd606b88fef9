pytest_plugins = ["pytester"]


def test_fixture_gives_the_machine_that_was_asked_for(pytester):
    pytester.makepyfile(
        """
        import pytest

        def test_default(topology):
            assert topology.topology_obj.n_sips == 4
            assert topology.topology_obj.spec.name == "ahbm-4sip"

        @pytest.mark.topology("tiny", sips=3)
        def test_marker(topology):
            assert topology.topology_obj.n_sips == 3
            assert topology.with_sips(2).topology_obj.n_sips == 2

        @pytest.mark.parametrize("topology", [1, 8, "tiny", ("tiny", 5)], indirect=True)
        def test_indirect(topology, request):
            wanted = request.node.callspec.params["topology"]
            expected = {"tiny": 1}.get(wanted, wanted[1] if isinstance(wanted, tuple) else wanted)
            assert topology.topology_obj.n_sips == expected
        """
    )
    pytester.runpytest("-p", "no:cacheprovider").assert_outcomes(passed=6)


def test_command_line_chooses_the_machine(pytester):
    pytester.makepyfile(
        "def test(topology):\n    assert (topology.source, topology.topology_obj.n_sips) == ('tiny', 2)\n"
    )
    pytester.runpytest("-p", "no:cacheprovider", "--kb-topology=tiny", "--kb-sips=2").assert_outcomes(passed=1)
