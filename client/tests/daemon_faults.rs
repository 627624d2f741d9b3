//! What the library does when the daemon is gone or writes nonsense, and that it cleans up in the right order.
//! The mock only: these need its inside.
mod common;
mod mock;

use std::time::Duration;

use common::{Daemon, pair};
use common::{NOW, SOON, Side, everything};
use mock::{Object, State};
use rnic::{Completion, Error, EventKind, EventObject, QpConfig};
use rnic_abi::{Cqe, cqe_flags, event_kind};

fn mocked() -> Daemon {
    let mock = mock::Mock::start();
    Daemon {
        socket: mock.socket.clone(),
        mock: Some(mock),
    }
}

fn state(daemon: &Daemon) -> std::sync::MutexGuard<'_, State> {
    daemon.mock.as_ref().unwrap().state()
}

/// The client that has this QP, with the QP's handle.
fn owner(state: &mut State, qpn: u32) -> (usize, u32) {
    let found = state
        .clients
        .iter_mut()
        .enumerate()
        .find_map(|(i, client)| Some((i, client.qp(qpn)?.0)));
    found.unwrap()
}

#[test]
fn everything_is_destroyed_and_in_an_order_the_daemon_accepts() {
    let daemon = mocked();
    let (a, b) = pair(&daemon);
    let kept = b.context.clone();
    // Dropped while in flight: it outlives its own handle, not the QP.
    let buffer = b.pd.alloc_mr(4096, everything()).unwrap();
    b.qp.post_recv(|batch| {
        batch.recv(&buffer);
    })
    .unwrap();
    drop(buffer);
    let count = |kind: fn(&Object) -> bool| {
        let state = state(&daemon);
        state
            .clients
            .iter()
            .flat_map(|client| client.objects.values())
            .filter(|object| kind(object))
            .count()
    };
    assert_eq!(count(|object| matches!(object, Object::Mr(_))), 3);
    // Declared in the wrong order on purpose: references keep what is still needed.
    let Side {
        context,
        pd,
        mr,
        cq,
        qp,
    } = b;
    drop((context, pd, cq, mr));
    assert_eq!(
        count(|object| matches!(object, Object::Pd { .. } | Object::Cq(_))),
        4
    );
    drop(qp);
    drop(a);
    assert_eq!(count(|_| true), 0);
    assert_eq!(state(&daemon).refused, Vec::<String>::new());
    drop(kept);
}

#[test]
fn a_dropped_region_in_flight_is_deregistered_with_its_completion() {
    let daemon = mocked();
    let (a, b) = pair(&daemon);
    let regions = || {
        let state = state(&daemon);
        let objects = state.clients.iter().flat_map(|client| client.objects.values());
        objects.filter(|object| matches!(object, Object::Mr(_))).count()
    };
    let buffer = b.pd.alloc_mr(4096, everything()).unwrap();
    b.qp.post_recv(|batch| {
        batch.recv(&buffer);
    })
    .unwrap();
    drop(buffer);
    assert_eq!(regions(), 3);
    a.qp.post(|batch| {
        batch.send(a.mr.slice(..8)).signaled();
    })
    .unwrap();
    assert_eq!(b.completion().byte_len, 8);
    assert_eq!(regions(), 2);
}

#[test]
fn completions_nobody_waits_for_are_dropped() {
    let daemon = mocked();
    let (a, b) = pair(&daemon);
    b.qp.post_recv(|batch| {
        batch.recv(&b.mr).wr_id(11);
    })
    .unwrap();
    {
        let mut state = state(&daemon);
        let (client, handle) = owner(&mut state, b.qp.qpn());
        let client = &mut state.clients[client];
        let cq = client.qp(b.qp.qpn()).unwrap().1.recv_cq;
        let slot = rnic_abi::Handle(handle).slot();
        let recv = Cqe {
            handle,
            flags: cqe_flags::RECV,
            ..Cqe::default()
        };
        // Another generation of the slot, a send that was never posted, receives never posted, no index at all.
        client.push(
            cq,
            slot,
            Cqe {
                handle: handle + (1 << 20),
                ..recv
            },
        );
        client.push(cq, slot, Cqe { flags: 0, ..recv });
        client.push(cq, slot, Cqe { wr_id: 1, ..recv });
        client.push(
            cq,
            slot,
            Cqe {
                wr_id: u64::from(u32::MAX),
                ..recv
            },
        );
        client.push(
            cq,
            slot,
            Cqe {
                wr_id: 1 << 32,
                ..recv
            },
        );
        client.push(
            cq,
            slot,
            Cqe {
                wr_id: 0,
                byte_len: 3,
                ..recv
            },
        );
        // The same once more: it is no longer in flight.
        client.push(cq, slot, Cqe { wr_id: 0, ..recv });
    }
    let mut out = [Completion::default(); 16];
    assert_eq!(b.cq.poll(&mut out), 1);
    assert_eq!((out[0].wr_id, out[0].byte_len), (11, 3));
    assert_eq!(b.cq.poll(&mut out), 0);
    drop(a);
}

#[test]
fn completions_of_a_destroyed_queue_pair_are_dropped() {
    let daemon = mocked();
    let (a, b) = pair(&daemon);
    let second = b.pd.create_qp(QpConfig::new(&b.cq, &b.cq)).unwrap();
    b.qp.post_recv(|batch| {
        batch.recv(&b.mr);
    })
    .unwrap();
    a.qp.post(|batch| {
        batch.send(a.mr.slice(..8)).signaled();
    })
    .unwrap();
    a.completion();
    b.qp.destroy().unwrap();
    assert_eq!(b.cq.poll(&mut [Completion::default(); 4]), 0);
    drop(second);
}

#[test]
fn a_completion_queue_with_impossible_indices_is_an_error() {
    let daemon = mocked();
    let (a, b) = pair(&daemon);
    {
        let mut state = state(&daemon);
        let (client, _) = owner(&mut state, b.qp.qpn());
        let client = &mut state.clients[client];
        let cq = client.qp(b.qp.qpn()).unwrap().1.recv_cq;
        let Some(Object::Cq(cq)) = client.objects.get(&cq) else {
            panic!()
        };
        let ring = cq.offset + rnic_abi::cq_subring_offset(cq.depth, 0);
        client
            .region
            .u32(ring)
            .store(cq.depth + 1, std::sync::atomic::Ordering::Release);
    }
    assert_eq!(b.cq.poll(&mut [Completion::default(); 4]), 0);
    assert!(matches!(b.cq.wait_vec(4, None), Err(Error::Protocol(_))));
    assert!(matches!(
        b.cq.spin(&mut [Completion::default()], None),
        Err(Error::Protocol(_))
    ));
    drop(a);
}

#[test]
fn several_kinds_of_one_object_and_of_the_port_are_delivered() {
    let daemon = mocked();
    let (a, b) = pair(&daemon);
    {
        let mut state = state(&daemon);
        let (client, handle) = owner(&mut state, b.qp.qpn());
        let client = &mut state.clients[client];
        let cause = rnic_abi::Cause {
            check: 9,
            ..Default::default()
        };
        client.report(handle, b.qp.qpn(), event_kind::COMM_EST, Default::default());
        client.report(handle, b.qp.qpn(), event_kind::QP_FATAL, cause);
        // The device's own slot, and that of another device, which is of no interest.
        for device in 0..2 {
            client.report(device, 1, event_kind::PORT_ERR, Default::default());
        }
    }
    let events: Vec<_> = std::iter::from_fn(|| b.context.next_event(NOW).unwrap())
        .map(|event| (event.kind, event.object, event.cause.map(|cause| cause.check)))
        .collect();
    let qp = EventObject::Qp(b.qp.qpn());
    assert_eq!(
        events,
        [
            (EventKind::QpFatal, qp, Some(9)),
            (EventKind::CommEstablished, qp, None),
            (EventKind::PortError, EventObject::Port(1), None)
        ]
    );
    drop(a);
}

#[test]
fn a_daemon_that_stops_is_an_error_everywhere_and_no_hang() {
    let mut daemon = mocked();
    let (a, b) = pair(&daemon);
    let mock = daemon.mock.as_mut().unwrap();
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| b.cq.wait_vec(1, SOON));
        let listener = scope.spawn(|| b.context.next_event(SOON));
        mock.stop();
        assert!(matches!(waiter.join().unwrap(), Err(Error::Disconnected { .. })));
        assert!(matches!(
            listener.join().unwrap(),
            Err(Error::Disconnected { .. })
        ));
    });
    let gone = a.context.query_port().unwrap_err();
    assert!(
        matches!(gone, Error::Disconnected { during: "query_port" }),
        "{gone}"
    );
    // Posting does not notice; waiting does.
    a.qp.post(|batch| {
        batch.send(a.mr.slice(..8)).signaled();
    })
    .unwrap();
    assert!(a.cq.wait_vec(1, SOON).is_err());
}

#[test]
fn a_sleeping_core_is_woken_by_a_post() {
    let daemon = mocked();
    let (a, b) = pair(&daemon);
    // The core sleeps when nothing happens; asleep or not, every post is served.
    let mut rounds = 0;
    while state(&daemon).wakes < 20 {
        rounds += 1;
        assert!(rounds < 10_000, "the core was never found asleep");
        std::thread::sleep(Duration::from_micros(rounds % 700));
        a.qp.post(|batch| {
            batch.write(a.mr.slice(..8), b.mr.remote()).signaled();
        })
        .unwrap();
        a.completion();
    }
}
