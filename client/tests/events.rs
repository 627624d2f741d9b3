//! Asynchronous events, from the error that causes them to their acknowledgement.
mod common;
mod mock;

use std::sync::mpsc;

use common::{Daemon, NOW, SOON, Side, everything, pair};
use rnic::{Access, AsyncEvent, EventKind, EventObject, QpState, RemoteAddr, Status};

/// The next event of this kind; others before it are dropped.
fn event(side: &Side, kind: EventKind) -> AsyncEvent {
    loop {
        let event = side.context.next_event(SOON).unwrap().expect("an event");
        if event.kind == kind {
            return event;
        }
    }
}

#[test]
fn a_refused_write_fails_with_its_cause_on_both_sides() {
    let daemon = Daemon::start();
    let (a, b) = pair(&daemon);
    let sealed =
        b.pd.alloc_mr(64, Access::LOCAL_WRITE | Access::REMOTE_READ)
            .unwrap();
    a.qp.post(|batch| {
        batch.write(a.mr.slice(..8), sealed.remote()).wr_id(1);
        batch.write(a.mr.slice(..8), b.mr.remote()).wr_id(2);
    })
    .unwrap();
    // Failures complete, signalled or not.
    let failed = a.completions(2);
    assert_eq!((failed[0].wr_id, failed[0].status), (1, Status::RemoteAccess));
    assert_eq!((failed[1].wr_id, failed[1].status), (2, Status::Flushed));
    let text = failed[0].ok().unwrap_err().to_string();
    assert!(
        text.contains("remote access error") && text.contains("syndrome 0x62"),
        "{text}"
    );
    assert_eq!(a.qp.query().unwrap().state, QpState::Error);
    assert!(a.qp.query().unwrap().cause.is_some());

    let refused = event(&b, EventKind::QpAccessError);
    assert_eq!(refused.object, EventObject::Qp(b.qp.qpn()));
    let cause = refused.cause.unwrap();
    assert_eq!(cause.opcode_name(), Some("RDMA WRITE only"));
    assert!(
        refused.to_string().starts_with("QP_ACCESS_ERR on QP 0x"),
        "{refused}"
    );
    assert_eq!(sealed.read_vec(0, 8), [0; 8]);
}

#[test]
fn a_forged_address_is_refused() {
    let daemon = Daemon::start();
    let (a, b) = pair(&daemon);
    let forged = RemoteAddr {
        addr: u64::MAX - 3,
        rkey: b.mr.rkey(),
    };
    a.qp.post(|batch| {
        batch.write(a.mr.slice(..8), forged).signaled();
    })
    .unwrap();
    assert_eq!(a.completions(1)[0].status, Status::RemoteAccess);
}

#[test]
fn destroying_waits_for_events_that_other_threads_hold() {
    let daemon = Daemon::start();
    let (a, b) = pair(&daemon);
    let none = b.pd.alloc_mr(64, Access::LOCAL_WRITE).unwrap();
    a.qp.post(|batch| {
        batch.write(a.mr.slice(..8), none.remote());
    })
    .unwrap();
    let Side { qp, context, .. } = b;
    let (have, held) = mpsc::channel();
    let (go, gone) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let event = context.next_event(SOON).unwrap().unwrap();
            have.send(()).unwrap();
            go.send("acknowledged").unwrap();
            drop(event);
        });
        held.recv().unwrap();
        qp.destroy().unwrap();
        // The event was dropped before the destroy returned, so this stands first.
        go.send("destroyed").unwrap();
    });
    assert_eq!(
        [gone.recv().unwrap(), gone.recv().unwrap()],
        ["acknowledged", "destroyed"]
    );
}

#[test]
fn an_event_held_by_the_destroying_thread_itself_does_not_block_it() {
    let daemon = Daemon::start();
    let (a, b) = pair(&daemon);
    let none = b.pd.alloc_mr(64, Access::LOCAL_WRITE).unwrap();
    a.qp.post(|batch| {
        batch.write(a.mr.slice(..8), none.remote());
    })
    .unwrap();
    let held = event(&b, EventKind::QpAccessError);
    b.qp.destroy().unwrap();
    assert_eq!(held.kind.name(), "QP_ACCESS_ERR");
}

#[test]
fn events_of_a_destroyed_queue_pair_are_not_delivered() {
    let daemon = Daemon::start();
    let (a, b) = pair(&daemon);
    let none = b.pd.alloc_mr(64, everything()).unwrap().remote();
    a.qp.post(|batch| {
        batch.write(a.mr.slice(..8), none).signaled();
    })
    .unwrap();
    assert_eq!(a.completions(1)[0].status, Status::RemoteAccess);
    let Side { qp, context, .. } = b;
    qp.destroy().unwrap();
    assert!(context.next_event(NOW).unwrap().is_none());
}
