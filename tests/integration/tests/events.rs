//! Asynchronous events, as a client process gets them.
use std::sync::Mutex;
use std::time::Duration;

use rnic::{
    Access, ConnectOptions, Context, Cq, EventKind, EventObject, Mr, Pd, Qp, QpConfig, QpState, RemoteAddr,
    Status,
};
use rnic_tests::{Appliance, Setup, Turn};

const SOON: Option<Duration> = Some(Duration::from_secs(20));
/// RDMA WRITE only, as a packet says it.
const WRITE_ONLY: u8 = 0x0A;
/// ACKNOWLEDGE, as a packet says it.
const ACKNOWLEDGE: u8 = 0x11;
/// NAK: remote access error.
const NAK_ACCESS: u8 = 0x62;

/// One end of a connection.
struct End {
    context: Context,
    _pd: Pd,
    cq: Cq,
    qp: Qp,
    mr: Mr,
}

fn end(appliance: &Appliance, device: &str) -> End {
    let context = appliance.open(device);
    let pd = context.alloc_pd().unwrap();
    let cq = context.create_cq(64).unwrap();
    let qp = pd.create_qp(QpConfig::new(&cq, &cq)).unwrap();
    let mr = pd
        .alloc_mr(4096, Access::LOCAL_WRITE | Access::REMOTE_WRITE)
        .unwrap();
    End {
        context,
        _pd: pd,
        cq,
        qp,
        mr,
    }
}

fn connected(appliance: &Appliance) -> [End; 2] {
    let [a, b] = ["rnic0", "rnic1"].map(|device| end(appliance, device));
    let options = ConnectOptions::default();
    let [pa, pb] = [&a, &b].map(|end| end.qp.endpoint(&options).unwrap());
    a.qp.connect(&pb, &options).unwrap();
    b.qp.connect(&pa, &options).unwrap();
    [a, b]
}

fn write_at(end: &End, remote: RemoteAddr) -> rnic::Completion {
    end.qp
        .post(|batch| {
            batch.write(end.mr.slice(..100), remote).wr_id(4).signaled();
        })
        .unwrap();
    end.cq.wait_vec(1, SOON).unwrap()[0]
}

fn start(loopback: &str) -> Appliance {
    Appliance::start(&Setup::back_to_back().with_ports(&format!("loopback: {loopback}")))
}

#[test]
fn a_remote_access_error_reaches_both_processes_with_its_cause() {
    let _turn = Turn::take();
    for loopback in ["wire", "direct"] {
        let appliance = start(loopback);
        let [a, b] = connected(&appliance);
        let target = b.mr.remote();
        assert_eq!(write_at(&a, target.into()).status, Status::Success);
        let forged = RemoteAddr {
            rkey: target.rkey ^ 1,
            ..target.into()
        };
        let failed = write_at(&a, forged);
        assert_eq!((failed.wr_id, failed.status), (4, Status::RemoteAccess));
        let at_requester = failed.cause.expect("an error has a cause");
        // What failed it was the answer; at the responder it is the request.
        assert_eq!(
            (at_requester.opcode, at_requester.syndrome),
            (ACKNOWLEDGE, NAK_ACCESS),
            "{at_requester}"
        );

        let event = b.context.next_event(SOON).unwrap().expect("an event");
        assert_eq!(event.kind, EventKind::QpAccessError, "{event}");
        assert_eq!(event.object, EventObject::Qp(b.qp.qpn()));
        let at_responder = event.cause.expect("the event has a cause");
        assert_eq!(
            (at_responder.opcode, at_responder.syndrome),
            (WRITE_ONLY, NAK_ACCESS),
            "{event}"
        );
        assert_ne!(at_responder.check, 0, "which check failed: {event}");
        assert_eq!(
            at_responder.psn, at_requester.psn,
            "both speak of the same packet"
        );
        drop(event);

        for end in [&a, &b] {
            assert_eq!(end.qp.query().unwrap().state, QpState::Error);
        }
        assert_eq!(b.qp.query().unwrap().cause, Some(at_responder));
        let qps = appliance.ctl_json(&["qp"]);
        let listed = qps
            .as_array()
            .unwrap()
            .iter()
            .find(|qp| qp["qpn"] == b.qp.qpn())
            .expect("it is listed");
        assert_eq!(listed["state"], "ERR", "{listed}");
        assert_eq!(listed["last_cause"]["psn"], at_responder.psn);
        drop((a, b));
        appliance.stop();
    }
}

#[test]
fn a_read_or_write_without_the_right_is_an_access_error_too() {
    let _turn = Turn::take();
    let appliance = start("wire");
    let [a, b] = connected(&appliance);
    // The region may be written, not read.
    a.qp.post(|batch| {
        batch.read(a.mr.slice(..64), b.mr.remote()).wr_id(9).signaled();
    })
    .unwrap();
    let failed = a.cq.wait_vec(1, SOON).unwrap()[0];
    assert_eq!((failed.wr_id, failed.status), (9, Status::RemoteAccess));
    assert_eq!(
        b.context.next_event(SOON).unwrap().unwrap().kind,
        EventKind::QpAccessError
    );
    drop((a, b));
    appliance.stop();
}

#[test]
fn a_key_invalidated_by_the_peer_opens_nothing_any_more() {
    let _turn = Turn::take();
    let appliance = start("wire");
    let [a, b] = connected(&appliance);
    let access = Access::LOCAL_WRITE | Access::REMOTE_WRITE | Access::INVALIDATE;
    let region = b._pd.alloc_mr(4096, access).unwrap();
    let target = region.remote();
    b.qp.post_recv(|batch| {
        batch.recv([]).wr_id(1);
    })
    .unwrap();
    a.qp.post(|batch| {
        batch.send([]).invalidate(target.rkey).wr_id(2).signaled();
    })
    .unwrap();
    let received = b.cq.wait_vec(1, SOON).unwrap()[0].ok().unwrap();
    assert_eq!(received.invalidated_rkey, Some(target.rkey));
    assert_eq!(a.cq.wait_vec(1, SOON).unwrap()[0].ok().unwrap().wr_id, 2);
    assert_eq!(write_at(&a, target.into()).status, Status::RemoteAccess);
    drop((a, b));
    appliance.stop();
}

#[test]
fn destroying_a_qp_waits_until_its_events_are_acknowledged() {
    let _turn = Turn::take();
    let appliance = start("wire");
    let [a, b] = connected(&appliance);
    let forged = RemoteAddr {
        rkey: b.mr.rkey() ^ 1,
        ..b.mr.remote().into()
    };
    assert_eq!(write_at(&a, forged).status, Status::RemoteAccess);
    let order = Mutex::new(Vec::new());
    let End { context, qp, .. } = b;
    std::thread::scope(|scope| {
        let (taken, has_event) = std::sync::mpsc::channel();
        let order = &order;
        scope.spawn(move || {
            let event = context.next_event(SOON).unwrap().expect("an event");
            taken.send(()).unwrap();
            // Long enough for a destroy that does not wait to be caught; too short only makes the test blind.
            std::thread::sleep(Duration::from_millis(200));
            order.lock().unwrap().push("acknowledged");
            drop(event);
        });
        has_event.recv().unwrap();
        qp.destroy().unwrap();
        order.lock().unwrap().push("destroyed");
    });
    assert_eq!(order.into_inner().unwrap(), ["acknowledged", "destroyed"]);
    drop(a);
    appliance.stop();
}

#[test]
fn a_client_learns_that_the_daemon_is_gone() {
    let _turn = Turn::take();
    let appliance = start("wire");
    let [a, b] = connected(&appliance);
    appliance.stop();
    assert!(matches!(
        a.context.next_event(SOON),
        Err(rnic::Error::Disconnected { .. })
    ));
    assert!(matches!(
        b.context.alloc_pd(),
        Err(rnic::Error::Disconnected { .. })
    ));
}
