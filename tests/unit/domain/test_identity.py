"""A restored domain is the original, or a new one that can run beside it."""

from __future__ import annotations

import itertools
import re

import pytest
from lxml import etree

from tests.unit.builders import UUID
from vbackup.domain import identity
from vbackup.domain.identity import Identified, Identity
from vbackup.errors import MalformedError

NEW = Identity("new & <old>", "99999999-2222-4333-8444-555555555555")
MACS = [f"52:54:00:00:00:{number:02x}" for number in range(9)]

#: A domain with everything that one domain at a time can have. libvirt takes it (tests/end_to_end/test_define.py).
CROWDED = f"""<domain type='qemu'>
  <name>web</name><uuid>{UUID}</uuid><genid>aaaaaaaa-2222-3333-4444-555555555555</genid>
  <title>the web server</title>
  <metadata><app:tag xmlns:app='http://example.org/app'>kept</app:tag></metadata>
  <memory unit='MiB'>32</memory><vcpu>1</vcpu>
  <sysinfo type='smbios'><system><entry name='serial'>{UUID.upper()}</entry><entry name='uuid'>{UUID}</entry>
    <entry name='sku'>kept</entry></system></sysinfo>
  <os><type arch='x86_64' machine='q35'>hvm</type><smbios mode='sysinfo'/></os>
  <features><acpi/></features>
  <devices>
    <interface type='bridge'><mac address='52:54:00:AA:00:01'/><source bridge='ovs0'/>
      <virtualport type='openvswitch'><parameters interfaceid='aaaaaaaa-0000-4000-8000-000000000001'/></virtualport>
      <target dev='web0'/><model type='virtio'/>
      <filterref filter='clean-traffic'><parameter name='MAC' value='52:54:00:aa:00:01'/></filterref></interface>
    <interface type='network'><mac address='52:54:00:aa:00:02'/><source network='default'/><target dev='vnet3'/>
      <model type='virtio'/><teaming type='persistent'/><alias name='ua-one'/></interface>
    <interface type='user'><mac address='00:16:3e:aa:00:03'/><model type='virtio'/></interface>
    <interface type='ethernet'><target dev='tap7' managed='no'/><mac address='52:54:00:aa:00:04'/></interface>
    <serial type='tcp'><source mode='bind' host='127.0.0.1' service='4555'/><target port='0'/></serial>
    <channel type='unix'><source mode='bind' path='/run/web.sock'/><target type='virtio' name='o.0'/></channel>
    <channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <graphics type='vnc' port='5911' autoport='no' websocket='5799'/>
    <graphics type='spice' autoport='yes'/>
    <vsock model='virtio'><cid auto='no' address='42'/></vsock>
  </devices>
  <seclabel type='static' model='dac' relabel='yes'><label>+0:+0</label></seclabel>
</domain>"""


def renewed(xml: str = CROWDED) -> Identified:
    return identity.renew(xml, NEW, iter(MACS))


def root(found: Identified) -> etree._Element:
    return etree.fromstring(found.text)


def domain(inside: str = "", devices: str = "") -> str:
    return f"<domain><name>web</name><uuid>{UUID}</uuid>{inside}<devices>{devices}</devices></domain>"


# the original


def test_original_keeps_everything_but_its_generation() -> None:
    found = identity.keep(CROWDED)
    assert found.identity == identity.of(CROWDED) == Identity("web", UUID)
    assert found.notes == ()
    expected = CROWDED.replace("<genid>aaaaaaaa-2222-3333-4444-555555555555</genid>", "<genid/>")
    assert etree.canonicalize(found.text) == etree.canonicalize(expected + "\n")


@pytest.mark.parametrize(("xml", "said"), [("<domain/>", "no <name>"), ("<domain><name>web</name></domain>", "<uuid>")])
def test_domain_without_an_identity_is_refused(xml: str, said: str) -> None:
    with pytest.raises(MalformedError, match=said):
        identity.of(xml)


# a new one


def test_new_domain_has_its_name_and_uuid_also_in_its_firmware_tables() -> None:
    made = root(renewed())
    assert (made.findtext("name"), made.findtext("uuid")) == (NEW.name, NEW.uuid)
    entries = {entry.get("name"): entry.text for entry in made.iterfind("sysinfo/system/entry")}
    assert entries == {"serial": NEW.uuid, "uuid": NEW.uuid, "sku": "kept"}
    assert made.find("genid").text is None
    assert made.findtext("title") == "the web server"
    assert "kept</app:tag>" in renewed().text
    assert UUID not in renewed().text.lower()


def test_serial_number_of_its_own_stays() -> None:
    xml = domain("<sysinfo type='smbios'><system><entry name='serial'>A1</entry></system></sysinfo>")
    assert "<entry name='serial'>A1</entry>".replace("'", '"') in renewed(xml).text


def test_every_interface_gets_another_address_and_its_filter_knows_it() -> None:
    made = root(renewed())
    addresses = [mac.get("address") for mac in made.iterfind("devices/interface/mac")]
    assert addresses == MACS[:4]
    assert made.find("devices/interface/filterref/parameter").get("value") == MACS[0]


def test_interfaces_of_a_team_still_share_their_address() -> None:
    team = "".join(
        f"<interface type='network'><mac address='{mac}'/></interface>" for mac in ("52:54:00:aa:00:01",) * 2
    )
    assert [mac.get("address") for mac in root(renewed(domain(devices=team))).iter("mac")] == [MACS[0]] * 2


def test_names_that_the_host_would_have_twice_are_left_to_libvirt() -> None:
    made = root(renewed())
    assert [target.get("dev") for target in made.iterfind("devices/interface/target")] == ["tap7"]
    assert dict(made.find("devices/interface/virtualport/parameters").attrib) == {}
    assert dict(made.find("devices/vsock/cid").attrib) == {"auto": "yes"}


def test_id_of_a_port_that_libvirt_does_not_make_stays() -> None:
    port = "<virtualport type='midonet'><parameters interfaceid='aaaaaaaa-0000-4000-8000-000000000001'/></virtualport>"
    assert "interfaceid" in renewed(domain(devices=f"<interface type='bridge'>{port}</interface>")).text


def test_person_hears_what_both_domains_cannot_have_at_once() -> None:
    assert renewed().notes == (
        "The network device web0 stays the original's: libvirt names another one.",
        "The vsock address (cid) 42 stays the original's: libvirt chooses another.",
        (
            "The new domain still has what only one domain at a time can use: vnc port 5911, vnc websocket 5799, serial"
            " port 4555, channel socket /run/web.sock, network device tap7. While the original runs, change that with"
            " 'virsh edit' before you start it."
        ),
    )
    assert renewed(domain(devices="<graphics type='vnc' port='-1' autoport='yes' websocket='-1'/>")).notes == ()


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("<interface type='hostdev'/>", r"an interface of the host \(hostdev\)"),
        (
            "<interface type='vhostuser'><source type='unix' path='/s' mode='client'/></interface>",
            "interface socket /s",
        ),
        (
            "<interface type='user'><portForward proto='tcp'><range start='2222'/></portForward></interface>",
            "port 2222",
        ),
        ("<graphics type='spice' tlsPort='5901'/>", "spice tlsPort 5901"),
        ("<graphics type='vnc'><listen type='socket' socket='/v'/></graphics>", "vnc socket /v"),
    ],
)
def test_each_device_that_only_one_domain_can_have(device: str, said: str) -> None:
    (note,) = renewed(domain(devices=device)).notes
    assert re.search(said, note)


def test_label_of_a_run_is_dropped_and_one_that_was_chosen_is_reported() -> None:
    labels = (
        "<seclabel type='dynamic' model='selinux' relabel='yes'><label>s:c1,c2</label><imagelabel>i</imagelabel>"
        "<baselabel>b</baselabel></seclabel><seclabel type='static' model='selinux'><label>s:c9</label></seclabel>"
    )
    found = renewed(domain(labels))
    dynamic, static = root(found).iterfind("seclabel")
    assert [child.tag for child in dynamic] == ["baselabel"]
    assert static.findtext("label") == "s:c9"
    (note,) = found.notes
    assert note.startswith(
        "The new domain has the selinux label s:c9 of the original: each can open the other's images"
    )


def test_renaming_changes_nothing_else() -> None:
    expected = CROWDED.replace("<name>web<", "<name>new &amp; &lt;old&gt;<").replace(UUID, NEW.uuid)
    expected = expected.replace(UUID.upper(), NEW.uuid)
    assert etree.canonicalize(identity.renamed(CROWDED, NEW)) == etree.canonicalize(expected + "\n")


# addresses and networks


def test_new_addresses_are_none_that_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    import secrets

    numbers = itertools.chain([1, 2, 2], itertools.count(3))
    monkeypatch.setattr(secrets, "token_bytes", lambda _count: bytes([0xAB, 0, next(numbers)]))
    made = identity.new_macs({"52:54:00:ab:00:01"})
    assert [next(made) for _ in range(2)] == ["52:54:00:ab:00:02", "52:54:00:ab:00:03"]


def test_addresses_and_networks_of_a_domain_are_found() -> None:
    assert identity.mac_addresses(CROWDED) == {
        *(f"52:54:00:aa:00:0{number}" for number in (1, 2, 4)),
        "00:16:3e:aa:00:03",
    }
    assert identity.networks(CROWDED) == {("bridge", "ovs0"), ("network", "default")}
    assert identity.networks(domain(devices="<interface type='bridge'><source bridge='../x'/></interface>")) == set()
