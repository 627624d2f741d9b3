use std::collections::HashSet;

use rnic_abi::*;
use rustix::io::Errno;

use crate::testing::*;

#[test]
fn everything_is_busy_while_something_depends_on_it() {
    let daemon = TestDaemon::start(2);
    let mut client = daemon.client();
    let (pd, (channel, _wake)) = (client.pd(), client.channel());
    let cq = client.try_cq(64, channel).unwrap().handle;
    let qp = client.qp(pd, cq).handle;
    for (op, handle) in [
        (Op::DeallocPd, pd),
        (Op::DestroyCq, cq),
        (Op::DestroyCompChannel, channel),
    ] {
        let refused = client.destroy(op, handle).unwrap_err();
        assert_eq!(refused.errno, Errno::BUSY, "{}", op.name());
        assert!(refused.text.contains("in use by"), "{}", refused.text);
    }
    client.destroy_counting(Op::DestroyQp, qp);
    client.destroy(Op::DeallocPd, pd).unwrap();
    assert_eq!(
        client.destroy(Op::DestroyCompChannel, channel).unwrap_err().errno,
        Errno::BUSY
    );
    client.destroy_counting(Op::DestroyCq, cq);
    client.destroy(Op::DestroyCompChannel, channel).unwrap();
    let status = daemon.status();
    assert_eq!(
        (status.pds, status.cqs, status.qps, status.bytes_awaiting_grace),
        (0, 0, 0, 0)
    );
}

#[test]
fn numbers_come_back_late_and_with_another_generation() {
    let daemon = TestDaemon::start(1);
    let mut client = daemon.client();
    let (pd, cq) = (client.pd(), client.cq());
    let (mut qpns, mut handles) = (HashSet::new(), HashSet::new());
    let mut last_slot = None;
    for _ in 0..200 {
        let qp = client.connected_qp(pd, cq);
        assert!(
            qpns.insert(qp.qpn) && handles.insert(qp.handle),
            "a number was used twice"
        );
        let slot = Handle(qp.handle).slot();
        assert_ne!(last_slot, Some(slot), "a slot was taken again at once");
        last_slot = Some(slot);
        client.destroy_counting(Op::DestroyQp, qp.handle);
    }
    let fd = sealed_memfd(4096);
    let mut keys = HashSet::new();
    for _ in 0..50 {
        let mr = client.try_mr(pd, &fd, 4096, 1).unwrap();
        assert!(keys.insert(mr.rkey));
        client.destroy(Op::DeregMr, mr.handle).unwrap();
    }
}

#[test]
fn a_client_that_dies_takes_everything_it_owned_with_it() {
    let daemon = TestDaemon::start(2);
    let mut survivor = daemon.client();
    let survivors_pd = survivor.pd();
    for round in 0..3 {
        let mut client = daemon.client();
        let (pd, (channel, _wake)) = (client.pd(), client.channel());
        let cq = client.try_cq(64, channel).unwrap().handle;
        let fd = sealed_memfd(1 << 20);
        for _ in 0..4 {
            client.try_mr(pd, &fd, 1 << 20, 7).unwrap();
        }
        for _ in 0..20 {
            let qp = client.qp(pd, cq);
            client.make_init(qp.handle);
            client.make_rtr(qp.handle, "10.0.0.2", qp.qpn).unwrap();
            client.make_rts(qp.handle);
        }
        // In the middle of a request, too.
        if round > 0 {
            client.send(
                Op::CreateCq,
                &CreateCq {
                    depth: 16,
                    ..CreateCq::default()
                },
                &[],
            );
        }
        if round > 1 {
            client.send_raw(b"noise", &[]);
        }
        drop(client);
        wait_for(|| daemon.status().clients == 1);
        let status = daemon.status();
        assert_eq!((status.pds, status.mrs, status.cqs, status.qps), (1, 0, 0, 0));
    }
    survivor.destroy(Op::DeallocPd, survivors_pd).unwrap();
    drop(survivor);
    daemon.wait_for_baseline();
}

#[test]
fn queue_space_of_the_destroyed_is_clean_when_it_is_used_again() {
    let daemon = TestDaemon::with(
        1,
        "limits: {per_client: {queue_memory: 64KiB, cq_depth: 64, wr_depth: 64}}",
    );
    let mut client = daemon.client();
    let (pd, cq) = (client.pd(), client.cq());
    for round in 0..40 {
        let qp = match round % 2 {
            0 => client.qp(pd, cq),
            _ => client.connected_qp(pd, cq),
        };
        let region = &client.context().region;
        for offset in [qp.sq_offset, qp.rq_offset] {
            let at = offset as usize;
            assert_eq!(region.read::<[u32; 2]>(at), Some([0, 0]));
            assert_eq!(region.read::<u32>(at + RingIndices::HEAD), Some(0));
            region.copy_in(at, &vec![0xEE; work_queue_size(16)]);
        }
        client.destroy_counting(Op::DestroyQp, qp.handle);
    }
}

#[test]
fn withdrawn_events_are_not_counted_and_taken_ones_are() {
    let daemon = TestDaemon::start(1);
    let mut client = daemon.client();
    let (pd, cq) = (client.pd(), client.cq());
    let mut head = 0;
    for take_it in [true, false, true] {
        let qp = client.qp(pd, cq);
        client.make_init(qp.handle);
        client.make_rtr(qp.handle, "10.0.0.2", qp.qpn).unwrap();
        client.make_rts(qp.handle);
        crate::tests::hostile::forge_tail(&client, &qp);
        wait_for(|| daemon.qps().iter().any(|q| q.qpn == qp.qpn && q.state == "ERR"));
        wait_for(|| wait_readable(&client.context().events, std::time::Duration::from_millis(50)));
        if take_it {
            let (handle, kinds) = client.event(head);
            assert_eq!((handle, kinds), (qp.handle, event_kind::QP_FATAL));
            head += 1;
        }
        assert_eq!(
            client.destroy_counting(Op::DestroyQp, qp.handle),
            u32::from(take_it)
        );
        if !take_it {
            // The entry stays in the ring, empty.
            assert_eq!(client.event(head).1, 0);
            head += 1;
        }
        let mut byte = [0; 8];
        let flags = rustix::net::RecvFlags::DONTWAIT;
        while rustix::net::recv(&client.context().events, &mut byte[..], flags).is_ok() {}
    }
}
