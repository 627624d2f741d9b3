//! Resizing, moderating and asking completion queues, and what else can be asked.

use rnic_abi::*;
use rustix::io::Errno;

use crate::{
    AdminRequest,
    res::{ResKind, ResPage, ResQuery},
    testing::*,
};

fn resize(client: &mut Client, handle: u32, depth: u32) -> Result<ResizeCqReply, Refused> {
    client.call(Op::ResizeCq, &ResizeCq { handle, depth })
}

fn done(client: &mut Client, handle: u32, wake: u32) -> Result<(), Refused> {
    client
        .call::<Empty>(Op::ResizeCqDone, &ResizeCqDone { handle, wake })
        .map(drop)
}

fn query(client: &mut Client, handle: u32) -> QueryCqReply {
    let arg = HandleArg { handle, reserved: 0 };
    client.call(Op::QueryCq, &arg).unwrap()
}

fn shown(daemon: &TestDaemon) -> serde_json::Value {
    let query = ResQuery {
        kind: ResKind::Cq,
        after: 0,
        pid: None,
        qpn: None,
    };
    let mut page: ResPage = serde_json::from_value(daemon.admin(AdminRequest::ResShow(query))).unwrap();
    page.objects.remove(0)
}

#[test]
fn a_resized_cq_stands_elsewhere_and_its_old_place_is_given_back_when_it_was_read() {
    let daemon = TestDaemon::start(2);
    let mut client = daemon.client();
    let made = client.try_cq(64, 0).unwrap();
    let first = resize(&mut client, made.handle, 100).unwrap();
    assert_eq!((first.depth, first.subrings), (128, 2));
    assert_ne!(first.offset, made.offset);
    assert_eq!(shown(&daemon)["state"], "resizing");
    // Asked again, as after a restart: the same.
    assert_eq!(resize(&mut client, made.handle, 128).unwrap(), first);
    let refused = resize(&mut client, made.handle, 32).unwrap_err();
    assert_eq!(refused.errno, Errno::BUSY);
    assert!(refused.text.contains("resize_cq_done"), "{}", refused.text);
    done(&mut client, made.handle, 0).unwrap();
    assert_eq!(
        (shown(&daemon)["state"].as_str(), shown(&daemon)["depth"].as_u64()),
        (Some("ok"), Some(128))
    );
    assert!(
        done(&mut client, made.handle, 0)
            .unwrap_err()
            .text
            .contains("was not resized")
    );
    // More than the client's queue space holds at once, were any of it not given back.
    for round in 0..300 {
        resize(&mut client, made.handle, 512 << (round % 2)).unwrap();
        done(&mut client, made.handle, 0).unwrap();
    }
    // Destroyed amid a resize too.
    for _ in 0..100 {
        let handle = client.try_cq(512, 0).unwrap().handle;
        resize(&mut client, handle, 1024).unwrap();
        client.destroy_counting(Op::DestroyCq, handle);
    }
}

#[test]
fn a_resize_to_nothing_too_much_or_less_than_waits_says_so() {
    let daemon = TestDaemon::start(2);
    let mut client = daemon.client();
    let made = client.try_cq(64, 0).unwrap();
    for depth in [0, 1 << 30] {
        let refused = resize(&mut client, made.handle, depth).unwrap_err();
        assert!(
            refused.text.contains("limits.per_client.cq_depth"),
            "{}",
            refused.text
        );
    }
    // As if a core had placed nine completions in its sub-ring.
    let ring = made.offset as usize + cq_subring_offset(made.depth, 1);
    let tail = client.context().region.u32(ring + RingIndices::TAIL).unwrap();
    tail.store(9, std::sync::atomic::Ordering::Release);
    assert_eq!(query(&mut client, made.handle).waiting, 9);
    let refused = resize(&mut client, made.handle, 8).unwrap_err();
    assert_eq!(refused.errno, Errno::INVAL);
    assert!(
        refused.text.contains("9 completions wait in one sub-ring"),
        "{}",
        refused.text
    );
    // A forged index is as bad as a full queue, and no worse.
    tail.store(u32::MAX, std::sync::atomic::Ordering::Release);
    assert_eq!(query(&mut client, made.handle).waiting, 64);
    resize(&mut client, made.handle, 64).unwrap();
}

#[test]
fn moderation_is_told_by_a_query_and_makes_sense_or_is_refused() {
    let daemon = TestDaemon::start(2);
    let mut client = daemon.client();
    let handle = client.cq();
    let modify = |client: &mut Client, count, period| {
        client.call::<Empty>(
            Op::ModifyCq,
            &ModifyCq {
                handle,
                count,
                period,
            },
        )
    };
    let told = |client: &mut Client| {
        let reply = query(client, handle);
        (
            reply.count,
            reply.period,
            reply.depth,
            reply.subrings,
            reply.failed,
        )
    };
    assert_eq!(told(&mut client), (0, 0, 64, 2, 0));
    modify(&mut client, 16, 200).unwrap();
    assert_eq!(told(&mut client), (16, 200, 64, 2, 0));
    assert_eq!(shown(&daemon)["moderation_count"], 16);
    let refused = modify(&mut client, 2, 0).unwrap_err();
    assert!(
        refused.text.contains("would never wake anyone"),
        "{}",
        refused.text
    );
    modify(&mut client, 1, 0).unwrap();
    assert_eq!(told(&mut client), (1, 0, 64, 2, 0));
}

#[test]
fn a_wake_that_nobody_could_arm_for_is_sent_when_the_client_asks_for_it() {
    let daemon = TestDaemon::start(1);
    let mut client = daemon.client();
    let (channel, socket) = client.channel();
    let handle = client.try_cq(16, channel).unwrap().handle;
    for wake in [0, 1] {
        resize(&mut client, handle, 32).unwrap();
        done(&mut client, handle, wake).unwrap();
    }
    assert!(wait_readable(&socket, std::time::Duration::from_secs(20)));
    let mut told = [0; 8];
    assert_eq!(rustix::io::read(&socket, &mut told).unwrap(), 4);
    assert_eq!(told[..4], handle.to_le_bytes());
    assert!(
        !wait_readable(&socket, std::time::Duration::ZERO),
        "one was asked for"
    );
}

#[test]
fn devices_ports_pkeys_and_the_clock_are_told_as_they_are() {
    let daemon = TestDaemon::start(1);
    let mut client = daemon.client();
    let arg = DeviceArg::default();
    let device: DeviceReply = client.call(Op::QueryDevice, &arg).unwrap();
    assert_eq!(
        (device.atomic_cap, device.core_clock_khz, device.timestamp_mask),
        (2, 1_000_000, u64::MAX)
    );
    assert_eq!((device.max_pkeys, device.max_mcast_qp_attach), (1, 64));
    assert_eq!(device.max_res_rd_atom, device.max_qp * device.max_qp_rd_atom);
    assert_eq!((device.max_cq_count, device.max_cq_period), (0xFFFF, 0xFFFF));
    let srq = |max_wr| CreateSrq {
        max_wr,
        max_sge: 1,
        ..CreateSrq::default()
    };
    let pd = client.pd();
    let most = CreateSrq {
        pd,
        ..srq(device.max_srq_wr)
    };
    client.call::<CreateSrqReply>(Op::CreateSrq, &most).unwrap();
    let more = CreateSrq {
        max_wr: most.max_wr + 1,
        ..most
    };
    assert!(client.call::<CreateSrqReply>(Op::CreateSrq, &more).is_err());
    let port: PortReply = client.call(Op::QueryPort, &arg).unwrap();
    assert_eq!((port.pkeys, port.max_msg_sz, port.phys_state), (1, 1 << 31, 5));
    let pkey: PkeyReply = client.call(Op::QueryPkey, &PkeyArg::default()).unwrap();
    assert_eq!(pkey.pkey, 0xFFFF);
    let refused = client
        .call::<PkeyReply>(Op::QueryPkey, &PkeyArg { device: 0, index: 1 })
        .unwrap_err();
    assert!(
        refused.text.contains("rnic0 has 1 P_Key, at 0"),
        "{}",
        refused.text
    );
    let clock = |client: &mut Client| {
        client
            .call::<RtValuesReply>(Op::QueryRtValues, &arg)
            .unwrap()
            .raw_clock
    };
    let before = rnic_engine::core::clock().0;
    let between = clock(&mut client);
    assert!(before <= between && between <= rnic_engine::core::clock().0);
}
