use rnic_abi::*;
use rustix::{fs::fcntl_get_seals, io::Errno};
use zerocopy::{FromBytes, IntoBytes};

use crate::{socket, testing::*};

#[test]
fn hello_brings_a_sealed_region_and_a_socket_for_every_core() {
    let daemon = TestDaemon::start(2);
    let mut client = daemon.stranger();
    let (hello, fds) = client
        .call_with::<HelloReply>(Op::Hello, &Hello::default(), &[])
        .unwrap();
    assert_eq!((hello.devices, hello.cores, fds.len()), (32, 2, 4));
    let seals = fcntl_get_seals(&fds[0]).unwrap();
    assert!(seals.contains(rustix::fs::SealFlags::SHRINK | rustix::fs::SealFlags::GROW));
    let client = daemon.client();
    assert_eq!(client.context().layout.slots, hello.max_objects + hello.devices);
    let status = daemon.status();
    assert_eq!((status.clients, status.cores.len()), (2, 2));
}

#[test]
fn devices_ports_and_gids_are_told_as_configured() {
    let daemon = TestDaemon::start(1);
    let mut client = daemon.client();
    let device: DeviceReply = client
        .call(
            Op::QueryDevice,
            &DeviceArg {
                device: 1,
                reserved: 0,
            },
        )
        .unwrap();
    assert_eq!(device.name[..6], *b"rnic1\0");
    assert_eq!((device.gids, device.ports, device.max_qp), (1, 1, 1024));
    let port: PortReply = client.call(Op::QueryPort, &DeviceArg::default()).unwrap();
    assert_eq!(
        (port.state, port.active_mtu, port.link_mtu, port.gids),
        (4, 5, 4200, 2)
    );
    let gid: GidReply = client
        .call(Op::QueryGid, &GidArg { device: 0, index: 0 })
        .unwrap();
    assert_eq!(gid.gid, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 10, 0, 0, 1]);
    let gid: GidReply = client
        .call(Op::QueryGid, &GidArg { device: 0, index: 1 })
        .unwrap();
    assert_eq!(
        (gid.gid[0], gid.gid[15], gid.kind, gid.vlan),
        (0xFD, 1, 2, 0xFFFF)
    );
    let refused = client
        .call::<GidReply>(Op::QueryGid, &GidArg { device: 0, index: 2 })
        .unwrap_err();
    assert_eq!(refused.text, "index is 2; rnic0 has 2 GIDs, from 0");
    let refused = client
        .call::<PortReply>(
            Op::QueryPort,
            &DeviceArg {
                device: 2,
                reserved: 0,
            },
        )
        .unwrap_err();
    assert_eq!(
        (refused.errno, refused.text.as_str()),
        (Errno::NODEV, "there is no device 2")
    );
}

#[test]
fn replaying_the_last_request_repeats_its_reply_and_makes_nothing_new() {
    let daemon = TestDaemon::start(1);
    let mut client = daemon.client();
    let first = client.pd();
    client.sequence -= 1;
    assert_eq!(client.pd(), first);
    assert_eq!(daemon.status().pds, 1);
    client.sequence -= 2;
    let refused = client
        .call::<HandleReply>(Op::AllocPd, &DeviceArg::default())
        .unwrap_err();
    assert_eq!(refused.errno, Errno::ILSEQ);
    client.sequence += 1;
    assert_ne!(client.pd(), first, "an out-of-order request must not count");
}

#[test]
fn a_replayed_hello_brings_the_descriptors_again() {
    let daemon = TestDaemon::start(1);
    let mut client = daemon.client();
    let session = std::mem::take(&mut client.session);
    client.sequence = 0;
    client.hello();
    assert_eq!(client.session, session);
    assert_eq!(daemon.status().clients, 1);
}

#[test]
fn requests_sent_ahead_are_answered_in_order() {
    let daemon = TestDaemon::start(1);
    let mut client = daemon.client();
    for _ in 0..40 {
        client.send(
            Op::CreateCq,
            &CreateCq {
                depth: 16,
                ..CreateCq::default()
            },
            &[],
        );
    }
    for sequence in 2..42 {
        let (header, ..) = client.receive().unwrap();
        assert_eq!((header.sequence, header.status), (sequence, 0));
    }
}

#[test]
fn an_old_client_is_told_which_version_is_served() {
    let daemon = TestDaemon::start(1);
    let mut client = daemon.stranger();
    let mut header = client.header(Op::Hello, 32);
    header.version = 77;
    client.send_raw(&[header.as_bytes(), Hello::default().as_bytes()].concat(), &[]);
    let refused = client.result::<HelloReply>().unwrap_err();
    assert_eq!(refused.errno, Errno::PROTONOSUPPORT);
    assert!(refused.text.contains("version 77"), "{}", refused.text);
    client.sequence = 0;
    client.hello();
}

#[test]
fn clients_beyond_the_limit_are_refused_until_one_leaves() {
    let daemon = TestDaemon::with(1, "limits: {clients: 2}");
    let first = daemon.client();
    let _second = daemon.client();
    let mut third = daemon.stranger();
    let refused = third
        .call::<HelloReply>(Op::Hello, &Hello::default())
        .unwrap_err();
    assert_eq!(refused.errno, Errno::AGAIN);
    assert!(refused.text.contains("limits.clients"));
    drop(first);
    wait_for(|| daemon.status().clients == 1);
    third.hello();
}

#[test]
fn a_stop_closes_every_session_and_removes_the_sockets() {
    let mut daemon = TestDaemon::start(1);
    let mut client = daemon.client();
    let (pd, cq) = (client.pd(), client.cq());
    client.qp(pd, cq);
    assert!(daemon.stop());
    assert!(client.receive().is_none());
    assert!(!daemon.socket().exists());
}

#[test]
fn noise_on_the_socket_is_answered_and_the_daemon_goes_on() {
    let daemon = TestDaemon::start(1);
    let mut client = daemon.client();
    let (extra, _other) = socket::pair().unwrap();
    for len in [1, 7, 39, 40, 41, 300, MAX_PACKET, MAX_PACKET + 10] {
        client.send_raw(&vec![0x5A; len], &[&extra, &extra]);
        let (header, body, fds) = client.receive().unwrap();
        assert_ne!(header.status, 0);
        assert!(!body.is_empty() && fds.is_empty());
    }
    for op in 0..40u16 {
        let mut header = client.header(Op::AllocPd, 2);
        header.op = op;
        client.send_raw(&[header.as_bytes(), &[1, 2]].concat(), &[]);
        let (reply, body, _) = client.receive().unwrap();
        assert_ne!(reply.status, 0, "op {op}: {}", String::from_utf8_lossy(&body));
        // Only what was admitted counts.
        if reply.status == Errno::NOSYS.raw_os_error() || op == Op::RegMr as u16 || op == Op::Hello as u16 {
            client.sequence -= 1;
        }
    }
    client.pd();
    assert_eq!(
        ReplyHeader::read_from_bytes(&[0; size_of::<ReplyHeader>()])
            .unwrap()
            .status,
        0
    );
}
