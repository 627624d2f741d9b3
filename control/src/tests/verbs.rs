use rnic_abi::*;
use rustix::io::Errno;

use crate::testing::*;

#[test]
fn a_qp_goes_from_reset_to_rts_and_a_query_tells_what_was_set() {
    let daemon = TestDaemon::start(1);
    let mut client = daemon.client();
    let (pd, cq) = (client.pd(), client.cq());
    let (a, b) = (client.qp(pd, cq), client.qp(pd, cq));
    client.make_init(a.handle);
    client.make_rtr(a.handle, "10.0.0.2", b.qpn).unwrap();
    client.make_rts(a.handle);
    let arg = HandleArg {
        handle: a.handle,
        reserved: 0,
    };
    let reply: QueryQpReply = client.call(Op::QueryQp, &arg).unwrap();
    let attrs = reply.attrs;
    assert_eq!((attrs.qp_state, attrs.path_mtu, attrs.dest_qp_num), (3, 3, b.qpn));
    assert_eq!((attrs.retry_cnt, attrs.qp_access_flags), (7, 7));
    assert_eq!(attrs.ah_attr.dgid[12..], [10, 0, 0, 2]);
    let listed = daemon.qps();
    assert_eq!(listed.len(), 2);
    let of_a = listed.iter().find(|qp| qp.qpn == a.qpn).unwrap();
    assert_eq!((of_a.state.as_str(), of_a.dest_qpn), ("RTS", b.qpn));
    assert_eq!(of_a.peer.unwrap().to_string(), "10.0.0.2");
    assert_eq!(of_a.pid, std::process::id() as i32);
}

#[test]
fn a_fresh_send_queue_asks_for_its_first_doorbell() {
    let daemon = TestDaemon::start(1);
    let mut client = daemon.client();
    let (pd, cq) = (client.pd(), client.cq());
    let qp = client.qp(pd, cq);
    let word = |offset: u64| -> u32 { client.context().region.read(offset as usize).unwrap() };
    assert_eq!(word(qp.sq_offset + RingIndices::NEED_KICK as u64), 1);
    for offset in [
        qp.sq_offset,
        qp.rq_offset,
        qp.sq_offset + RingIndices::HEAD as u64,
    ] {
        assert_eq!(word(offset), 0);
    }
    assert_eq!((qp.sq_depth, qp.rq_depth), (16, 16));
}

#[test]
fn modify_names_the_attribute_that_is_wrong() {
    let daemon = TestDaemon::start(1);
    let mut client = daemon.client();
    let (pd, cq) = (client.pd(), client.cq());
    let qp = client.qp(pd, cq).handle;
    let state = |qp_state| QpAttrs {
        qp_state,
        ..QpAttrs::default()
    };
    let refused = |client: &mut Client, mask, attrs| client.modify(qp, mask, attrs).unwrap_err().text;
    let text = refused(&mut client, qp_mask::STATE, state(1));
    assert!(text.contains("RESET to INIT needs"), "{text}");
    let text = refused(&mut client, qp_mask::STATE, state(3));
    assert!(text.contains("cannot go from RESET to RTS"), "{text}");
    client.make_init(qp);
    let text = refused(&mut client, RTR & !qp_mask::DEST_QPN, rtr("10.0.0.2", 5));
    assert!(text.contains("DEST_QPN"), "{text}");
    let text = refused(
        &mut client,
        RTR,
        QpAttrs {
            path_mtu: 6,
            ..rtr("10.0.0.2", 5)
        },
    );
    assert!(text.contains("path_mtu is 6"), "{text}");
    let text = refused(
        &mut client,
        RTR,
        QpAttrs {
            rq_psn: 1 << 24,
            ..rtr("10.0.0.2", 5)
        },
    );
    assert!(text.contains("RQ_PSN"), "{text}");
    let text = refused(&mut client, RTR, rtr("fd00::2", 5));
    assert!(text.contains("address family"), "{text}");
    client.make_rtr(qp, "10.0.0.2", 5).unwrap();
}

#[test]
fn a_path_mtu_the_link_does_not_carry_is_refused() {
    let (daemon, _wire) = TestDaemon::with_wire("mtu: 1500, addresses: [10.0.0.1/24]");
    let mut client = daemon.client();
    let (pd, cq) = (client.pd(), client.cq());
    let qp = client.qp(pd, cq).handle;
    client.make_init(qp);
    let refused = client
        .modify(
            qp,
            RTR,
            QpAttrs {
                path_mtu: 4,
                ..rtr("10.0.0.1", 5)
            },
        )
        .unwrap_err();
    assert!(
        refused.text.contains("2048") && refused.text.contains("lets 1024 through"),
        "{}",
        refused.text
    );
    client.modify(qp, RTR, rtr("10.0.0.1", 5)).unwrap();
}

#[test]
fn objects_of_two_devices_do_not_mix() {
    let daemon = TestDaemon::start(1);
    let mut client = daemon.client();
    let pd = client.pd();
    let other: CreateCqReply = client
        .call(
            Op::CreateCq,
            &CreateCq {
                device: 1,
                depth: 8,
                ..Default::default()
            },
        )
        .unwrap();
    let refused = client.try_qp(pd, other.handle).unwrap_err();
    assert!(
        refused.text.contains("send_cq belongs to rnic1, pd to rnic0"),
        "{}",
        refused.text
    );
    client.destroy(Op::DeallocPd, pd).unwrap();
}

#[test]
fn handles_are_of_one_client_and_one_kind() {
    let daemon = TestDaemon::start(1);
    let (mut a, mut b) = (daemon.client(), daemon.client());
    let (pd, cq) = (a.pd(), a.cq());
    let refused = a.try_qp(cq, cq).unwrap_err();
    assert!(
        refused.text.contains("which is a CQ; it must be a PD"),
        "{}",
        refused.text
    );
    let refused = b.destroy(Op::DeallocPd, pd).unwrap_err();
    assert!(refused.text.contains("no such PD"), "{}", refused.text);
    a.destroy(Op::DeallocPd, pd).unwrap();
    let refused = a.destroy(Op::DeallocPd, pd).unwrap_err();
    assert_eq!(refused.errno, Errno::INVAL);
}

#[test]
fn memory_is_registered_from_sealed_memfds_only() {
    let daemon = TestDaemon::start(1);
    let mut client = daemon.client();
    let pd = client.pd();
    let fd = sealed_memfd(8 << 20);
    let small = client.try_mr(pd, &fd, 4096, 7).unwrap();
    let large = client.try_mr(pd, &fd, 8 << 20, 7).unwrap();
    assert_ne!(small.lkey, large.lkey);
    assert_eq!(small.lkey, small.rkey);
    let refused = client.try_mr(pd, &fd, (8 << 20) + 1, 7).unwrap_err();
    assert!(refused.text.contains("leave the memfd"), "{}", refused.text);
    assert!(client.try_mr(pd, &fd, 0, 7).is_err());
    assert!(
        client
            .try_mr(pd, &fd, 4096, 2)
            .unwrap_err()
            .text
            .contains("LOCAL_WRITE")
    );
    let open = rustix::fs::memfd_create("open", rustix::fs::MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&open, 4096).unwrap();
    let refused = client.try_mr(pd, &open, 4096, 7).unwrap_err();
    assert_eq!(refused.errno, Errno::PERM);
    let (socket, _peer) = crate::socket::pair().unwrap();
    assert_eq!(
        client.try_mr(pd, &socket, 4096, 7).unwrap_err().errno,
        Errno::BADF
    );
    assert_eq!(daemon.status().mrs, 2);
    let refused = client.destroy(Op::DeallocPd, pd).unwrap_err();
    assert_eq!(refused.errno, Errno::BUSY);
    client.destroy(Op::DeregMr, small.handle).unwrap();
    client.destroy(Op::DeregMr, large.handle).unwrap();
    client.destroy(Op::DeallocPd, pd).unwrap();
}

#[test]
fn quotas_hold_and_come_back() {
    let sections = "limits: {per_client: {qps: 2, pds: 1, registered_memory: 1MiB, queue_memory: 64KiB, cq_depth: 256, wr_depth: 64}}";
    let daemon = TestDaemon::with(1, sections);
    let mut client = daemon.client();
    let (pd, cq) = (client.pd(), client.cq());
    let refused = client
        .call::<HandleReply>(Op::AllocPd, &DeviceArg::default())
        .unwrap_err();
    assert!(refused.text.contains("limits.per_client.pds"), "{}", refused.text);
    let (first, _second) = (client.qp(pd, cq), client.qp(pd, cq));
    assert_eq!(client.try_qp(pd, cq).unwrap_err().errno, Errno::NOMEM);
    client.destroy_counting(Op::DestroyQp, first.handle);
    client.qp(pd, cq);
    let fd = sealed_memfd(2 << 20);
    let refused = client.try_mr(pd, &fd, 2 << 20, 7).unwrap_err();
    assert!(refused.text.contains("registered_memory"), "{}", refused.text);
    let mr = client.try_mr(pd, &fd, 1 << 20, 7).unwrap();
    assert!(client.try_mr(pd, &fd, 4096, 7).is_err());
    client.destroy(Op::DeregMr, mr.handle).unwrap();
    client.try_mr(pd, &fd, 1 << 20, 7).unwrap();
    assert!(client.try_cq(257, 0).unwrap_err().text.contains("cq_depth"));
    assert!(client.try_cq(0, 0).is_err());
    let mut count = 0;
    let refused = loop {
        match client.try_cq(256, 0) {
            Ok(_) => count += 1,
            Err(refused) => break refused,
        }
    };
    assert!((1..4).contains(&count), "{count} CQs of 16 KiB in 64 KiB");
    assert!(refused.text.contains("queue_memory"), "{}", refused.text);
}

#[test]
fn a_qp_of_an_unknown_type_is_refused() {
    let daemon = TestDaemon::start(1);
    let mut client = daemon.client();
    let (pd, cq) = (client.pd(), client.cq());
    let arg = CreateQp {
        pd,
        send_cq: cq,
        recv_cq: cq,
        qp_type: 10,
        ..CreateQp::default()
    };
    let refused = client.call::<CreateQpReply>(Op::CreateQp, &arg).unwrap_err();
    assert_eq!(refused.errno, Errno::OPNOTSUPP);
    assert!(refused.text.contains("qp_type is 10"), "{}", refused.text);
    let arg = CreateQp { qp_type: 9, ..arg };
    let refused = client.call::<CreateQpReply>(Op::CreateQp, &arg).unwrap_err();
    assert!(refused.text.contains("receives nothing"), "{}", refused.text);
    let arg = CreateQp {
        qp_type: 2,
        sq_units: u32::MAX,
        ..arg
    };
    let refused = client.call::<CreateQpReply>(Op::CreateQp, &arg).unwrap_err();
    assert!(
        refused.text.contains("sq_units is 4294967295"),
        "{}",
        refused.text
    );
    client.destroy_counting(Op::DestroyCq, cq);
    client.destroy(Op::DeallocPd, pd).unwrap();
}

#[test]
fn a_region_is_deregistered_without_waiting_by_asking_until_it_is_done() {
    let daemon = TestDaemon::start(2);
    let mut client = daemon.client();
    let pd = client.pd();
    let fd = sealed_memfd(1 << 20);
    for _ in 0..50 {
        let mr = client.try_mr(pd, &fd, 1 << 20, 7 | INVALIDATABLE).unwrap();
        let arg = DeregMr {
            handle: mr.handle,
            flags: DEREG_NONBLOCK,
        };
        // An idle core passes in no time, so either answer may come; after EAGAIN the handle is still good.
        while let Err(refused) = client.call::<Empty>(Op::DeregMr, &arg) {
            assert_eq!(refused.errno, Errno::AGAIN, "{}", refused.text);
            assert_eq!(client.destroy(Op::DeallocPd, pd).unwrap_err().errno, Errno::BUSY);
        }
        let again = client.call::<Empty>(Op::DeregMr, &arg).unwrap_err();
        assert_eq!(again.errno, Errno::INVAL);
    }
    let mr = client.try_mr(pd, &fd, 4096, 1).unwrap();
    let arg = DeregMr {
        handle: mr.handle,
        flags: 6,
    };
    let unknown = client.call::<Empty>(Op::DeregMr, &arg).unwrap_err();
    assert!(unknown.text.contains("flags is 0x6"), "{}", unknown.text);
    // Unknown flags change nothing; and the waiting form ends what the other began.
    client.destroy(Op::DeregMr, mr.handle).unwrap();
    client.destroy(Op::DeallocPd, pd).unwrap();
}
