//! Changes of QPs in use, as an application makes them.
use std::time::Duration;

use rnic::{
    Access, AddressVector, ConnectOptions, Context, Cq, Error, EventKind, Mr, Pd, Qp, QpChange, QpConfig,
    QpState, QpType, Status,
};
use rnic_tests::{Appliance, Setup, Turn};

const SOON: Option<Duration> = Some(Duration::from_secs(20));
const QKEY: u32 = 0x1111_1111;
const MESSAGE: usize = 200 << 10;

struct End {
    context: Context,
    pd: Pd,
    cq: Cq,
    qp: Qp,
    mr: Mr,
}

fn end(appliance: &Appliance, device: &str, qp_type: QpType) -> End {
    let context = appliance.open(device);
    let pd = context.alloc_pd().unwrap();
    let cq = context.create_cq(256).unwrap();
    let qp = pd.create_qp(QpConfig::new(&cq, &cq).qp_type(qp_type)).unwrap();
    let access = Access::LOCAL_WRITE | Access::REMOTE_WRITE | Access::REMOTE_READ;
    let mr = pd.alloc_mr(MESSAGE, access).unwrap();
    End {
        context,
        pd,
        cq,
        qp,
        mr,
    }
}

fn connect(ends: &[End; 2]) {
    let options = ConnectOptions::default();
    let [a, b] = ends;
    let [pa, pb] = [a, b].map(|end| end.qp.endpoint(&options).unwrap());
    a.qp.connect(&pb, &options).unwrap();
    b.qp.connect(&pa, &options).unwrap();
}

fn write(from: &End, to: &End, len: usize, wr_id: u64) {
    let there = to.mr.remote().at(0);
    from.qp
        .post(|batch| {
            batch.write(from.mr.slice(..len), there).wr_id(wr_id).signaled();
        })
        .unwrap();
}

#[test]
fn a_busy_connection_is_drained_changed_and_goes_on() {
    let _turn = Turn::take();
    let appliance = Appliance::start(&Setup::back_to_back().cores(2).with_ports("loopback: wire"));
    let ends = ["rnic0", "rnic1"].map(|device| end(&appliance, device, QpType::Rc));
    connect(&ends);
    let [a, b] = &ends;
    for round in 0..5u64 {
        for wr_id in 0..8 {
            write(a, b, MESSAGE, round * 16 + wr_id);
        }
        a.qp.modify(QpChange::to(QpState::Sqd).notify_drained(true))
            .unwrap();
        for wr_id in 8..16 {
            write(a, b, 1000, round * 16 + wr_id);
        }
        let event = a
            .context
            .next_event(SOON)
            .unwrap()
            .expect("SQ_DRAINED within 20 s");
        assert_eq!(event.kind, EventKind::SqDrained);
        drop(event);
        let drained = a.qp.query().unwrap();
        assert_eq!(
            (drained.state, drained.sq_draining, drained.notify_drained),
            (QpState::Sqd, false, true)
        );
        // Another way to the same peer, and other timers.
        let (hop_limit, timeout) = (9 + round as u8, 12 + round as u8);
        let to = |end: &End| AddressVector {
            hop_limit,
            ..AddressVector::to(end.context.gid(1).unwrap().gid).gid_index(1)
        };
        let (path, there) = (to(b), to(a));
        b.qp.modify(QpChange::to(QpState::Sqd)).unwrap();
        b.qp.modify(QpChange::within().path(there)).unwrap();
        b.qp.modify(QpChange::to(QpState::Rts)).unwrap();
        a.qp.modify(QpChange::within().path(path).timeout(timeout).max_rd_atomic(2))
            .unwrap();
        a.qp.modify(QpChange::to(QpState::Rts).cur_state(QpState::Sqd))
            .unwrap();
        for wr_id in 0..16 {
            let done = a.cq.wait_vec(1, SOON).unwrap()[0].ok().unwrap();
            assert_eq!(done.wr_id, round * 16 + wr_id, "in order, across the drain");
        }
        let attr = a.qp.query().unwrap();
        assert_eq!(
            (attr.state, attr.timeout, attr.path, attr.max_rd_atomic),
            (QpState::Rts, timeout, Some(path), 2)
        );
    }
    drop(ends);
    appliance.stop();
}

#[test]
fn rights_change_under_a_live_connection_and_a_reset_qp_connects_again() {
    let _turn = Turn::take();
    let appliance = Appliance::start(&Setup::back_to_back());
    let ends = ["rnic0", "rnic1"].map(|device| end(&appliance, device, QpType::Rc));
    connect(&ends);
    let [a, b] = &ends;
    write(a, b, 100, 1);
    assert_eq!(a.cq.wait_vec(1, SOON).unwrap()[0].status, Status::Success);
    b.qp.modify(QpChange::within().access(Access::REMOTE_READ).min_rnr_timer(3))
        .unwrap();
    let attr = b.qp.query().unwrap();
    assert_eq!((attr.access, attr.min_rnr_timer), (Access::REMOTE_READ, 3));
    write(a, b, 100, 2);
    let refused = a.cq.wait_vec(1, SOON).unwrap()[0];
    assert_eq!(refused.status, Status::RemoteInvalidRequest);
    for end in &ends {
        let attr = end.qp.query().unwrap();
        assert_eq!(attr.state, QpState::Error);
        let refused = end.qp.modify(QpChange::to(QpState::Rts)).unwrap_err();
        let Error::Daemon { text, .. } = &refused else {
            panic!("{refused}")
        };
        assert!(text.contains("from ERR go to RESET"), "{text}");
        end.qp.reset().unwrap();
    }
    connect(&ends);
    write(a, b, 100, 3);
    let done = a.cq.wait_vec(1, SOON).unwrap()[0];
    assert_eq!(
        (done.wr_id, done.status),
        (3, Status::Success),
        "the right came with INIT again"
    );
    drop(ends);
    appliance.stop();
}

#[test]
fn an_unreliable_send_queue_that_failed_is_taken_back_to_rts() {
    let _turn = Turn::take();
    let appliance = Appliance::start(&Setup::back_to_back());
    for qp_type in [QpType::Uc, QpType::Ud] {
        let ends = ["rnic0", "rnic1"].map(|device| end(&appliance, device, qp_type));
        match qp_type {
            QpType::Ud => ends.iter().for_each(|end| end.qp.activate(QKEY).unwrap()),
            _ => connect(&ends),
        }
        let [a, b] = &ends;
        let ah =
            a.pd.create_ah(&AddressVector::to(b.context.gid(0).unwrap().gid))
                .unwrap();
        let send = |wr_id, read: bool| {
            let posted = a.qp.post(|batch| {
                if read {
                    // Neither type has it: a completion in error.
                    batch.read(a.mr.slice(..8), b.mr.remote().at(0)).wr_id(wr_id);
                    return;
                }
                match qp_type {
                    QpType::Ud => batch.send_to(a.mr.slice(..100), &ah, b.qp.qpn(), QKEY),
                    _ => batch.send(a.mr.slice(..100)),
                }
                .wr_id(wr_id)
                .signaled();
            });
            posted.unwrap();
        };
        send(1, true);
        send(2, false);
        let failed: Vec<_> = (0..2).map(|_| a.cq.wait_vec(1, SOON).unwrap()[0]).collect();
        assert_eq!(failed[0].status, Status::LocalQpOperation);
        assert_eq!((failed[1].wr_id, failed[1].status), (2, Status::Flushed));
        assert_eq!(a.qp.query().unwrap().state, QpState::Sqe);
        a.qp.modify(QpChange::to(QpState::Rts).cur_state(QpState::Sqe))
            .unwrap();
        b.qp.post_recv(|batch| {
            batch.recv(b.mr.slice(..1000)).wr_id(7);
        })
        .unwrap();
        send(3, false);
        assert_eq!(a.cq.wait_vec(1, SOON).unwrap()[0].status, Status::Success);
        let received = b.cq.wait_vec(1, SOON).unwrap()[0].ok().unwrap();
        assert_eq!(received.wr_id, 7);
    }
    appliance.stop();
}
