//! Shared receive queues through the client library, on a whole appliance.
use std::time::Duration;

use rnic::{
    Access, Completion, ConnectOptions, Context, Cq, Error, EventKind, EventObject, Mr, Pd, Qp, QpConfig,
    QpState, Srq,
};
use rnic_tests::{Appliance, Setup, Turn};

const PATHS: [&str; 2] = ["wire", "direct"];
const SOON: Option<Duration> = Some(Duration::from_secs(20));

fn appliance(path: &str) -> Appliance {
    let setup = Setup::back_to_back().cores(2);
    Appliance::start(&setup.with_ports(&format!("loopback: {path}")))
}

/// Senders on `rnic0`; on `rnic1` as many QPs that share a queue of `receives`, of three slices each.
struct Scene {
    senders: Vec<Qp>,
    sent: Cq,
    source: Mr,
    receivers: Vec<Qp>,
    received: Cq,
    srq: Srq,
    target: Mr,
    context: Context,
    _pd: Pd,
}

/// Bytes of a message, and of the place of one.
const LEN: usize = 3000;
const PLACE: usize = 4096;

impl Scene {
    fn new(appliance: &Appliance, qps: usize, receives: u32) -> Scene {
        let open = |device| Context::open(appliance.socket(), device).unwrap();
        let (ours, context) = (open("rnic0"), open("rnic1"));
        let (pd, shared_pd, qp_pd) = (
            ours.alloc_pd().unwrap(),
            context.alloc_pd().unwrap(),
            context.alloc_pd().unwrap(),
        );
        let (sent, received) = (ours.create_cq(256).unwrap(), context.create_cq(256).unwrap());
        let srq = shared_pd.create_srq(receives, 3).unwrap();
        let receivers: Vec<Qp> = (0..qps)
            .map(|_| {
                let config = QpConfig::new(&received, &received).srq(&srq);
                // Of another protection domain than the SRQ, whose own counts for its receives.
                qp_pd.create_qp(config).unwrap()
            })
            .collect();
        let senders: Vec<Qp> = (0..qps)
            .map(|_| {
                pd.create_qp(QpConfig::new(&sent, &sent).sq_sig_all(true))
                    .unwrap()
            })
            .collect();
        let options = ConnectOptions::default();
        for (a, b) in senders.iter().zip(&receivers) {
            let (to_a, to_b) = (b.endpoint(&options).unwrap(), a.endpoint(&options).unwrap());
            a.connect(&to_a, &options).unwrap();
            b.connect(&to_b, &options).unwrap();
        }
        let places = srq.max_wr() as usize;
        Scene {
            source: pd.alloc_mr(qps * PLACE, Access::NONE).unwrap(),
            target: shared_pd.alloc_mr(places * PLACE, Access::LOCAL_WRITE).unwrap(),
            senders,
            sent,
            receivers,
            received,
            srq,
            context,
            _pd: qp_pd,
        }
    }

    /// Posts the receive into a place, in three parts.
    fn post(&self, place: u64) -> rnic::Result<usize> {
        let at = place as usize * PLACE;
        let parts = [at..at + 5, at + 5..at + 1000, at + 1000..at + LEN].map(|part| self.target.slice(part));
        self.srq.post_recv(|batch| {
            batch.recv(parts).wr_id(place);
        })
    }

    fn post_all(&self) {
        for place in 0..self.srq.max_wr().into() {
            self.post(place).unwrap();
        }
    }

    /// Sends message `n` from QP `qp`.
    fn send(&self, qp: usize, n: u64) {
        let place = self.source.slice(qp * PLACE..qp * PLACE + LEN);
        place.write_at(0, &bytes(qp, n));
        self.senders[qp]
            .post(|batch| {
                batch.send(place).wr_id(n);
            })
            .unwrap();
    }
}

fn bytes(qp: usize, n: u64) -> Vec<u8> {
    (0..LEN)
        .map(|i| (i as u8).wrapping_mul(31) ^ (n as u8) ^ (qp as u8) << 6)
        .collect()
}

fn one(cq: &Cq) -> Completion {
    let done = cq.wait_vec(1, SOON).unwrap();
    done.into_iter().next().expect("a completion").ok().unwrap()
}

#[test]
fn messages_to_many_qps_take_the_receives_of_one_queue_and_each_arrives_where_it_says() {
    const QPS: usize = 3;
    let _turn = Turn::take();
    for path in PATHS {
        let appliance = appliance(path);
        let scene = Scene::new(&appliance, QPS, 6);
        scene.post_all();
        let mut next = [0; QPS];
        for n in 0..200 {
            for qp in 0..QPS {
                scene.send(qp, n);
            }
            for _ in 0..QPS {
                let got = one(&scene.received);
                let qp = scene.receivers.iter().position(|qp| qp.qpn() == got.qpn).unwrap();
                assert_eq!((got.byte_len as usize, got.is_recv), (LEN, true));
                let found = scene.target.read_vec(got.wr_id as usize * PLACE, LEN);
                assert_eq!(found, bytes(qp, next[qp]), "message {n} of QP {qp}");
                next[qp] += 1;
                scene.post(got.wr_id).unwrap();
            }
            for _ in 0..QPS {
                one(&scene.sent);
            }
        }
        drop(scene);
        appliance.stop();
    }
}

#[test]
fn a_full_queue_refuses_and_receives_come_back_with_their_completions_and_with_a_destroyed_qp() {
    let _turn = Turn::take();
    for path in PATHS {
        let appliance = appliance(path);
        let mut scene = Scene::new(&appliance, 2, 6);
        let max = scene.srq.max_wr();
        assert_eq!(scene.srq.query().unwrap().max_wr, max);
        scene.post_all();
        assert!(matches!(scene.post(0), Err(Error::QueueFull { depth, .. }) if depth == max));
        scene.send(0, 0);
        one(&scene.sent);
        assert!(
            scene.post(0).is_err(),
            "room comes with the completion, when it is polled"
        );
        let got = one(&scene.received);
        scene.post(got.wr_id).unwrap();
        // Received, not polled, and never to be polled.
        scene.send(0, 1);
        scene.send(0, 2);
        one(&scene.sent);
        one(&scene.sent);
        scene.receivers.remove(0).destroy().unwrap();
        scene.post(1).unwrap();
        scene.post(2).unwrap();
        assert!(scene.post(3).is_err());
        scene.send(1, 3);
        let got = one(&scene.received);
        assert_eq!(got.qpn, scene.receivers[0].qpn());
        drop(scene);
        appliance.stop();
    }
}

#[test]
fn limits_and_last_receives_are_told_and_an_srq_outlives_its_qps() {
    let _turn = Turn::take();
    let appliance = appliance("direct");
    let mut scene = Scene::new(&appliance, 2, 6);
    let events = scene.context.async_events();
    let wait_for = |kind| loop {
        let event = events.next(SOON).unwrap().expect("an event");
        if event.kind == kind {
            return event.object;
        }
    };
    let srq = EventObject::Srq(scene.srq.number());
    // None is posted: fewer than one.
    scene.srq.arm_limit(1).unwrap();
    assert_eq!(wait_for(EventKind::SrqLimitReached), srq);
    scene.post_all();
    scene.srq.arm_limit(scene.srq.max_wr()).unwrap();
    assert_eq!(scene.srq.query().unwrap().srq_limit, scene.srq.max_wr());
    scene.send(0, 0);
    assert_eq!(wait_for(EventKind::SrqLimitReached), srq);
    assert_eq!(scene.srq.query().unwrap().srq_limit, 0);
    one(&scene.received);

    let failed = scene.receivers[0].qpn();
    scene.receivers[0].fail().unwrap();
    assert_eq!(wait_for(EventKind::LastWqeReached), EventObject::Qp(failed));
    assert_eq!(scene.receivers[0].query().unwrap().state, QpState::Error);
    let refused = scene.receivers[0].post_recv(|_| {}).unwrap_err();
    assert!(refused.to_string().contains("SRQ"), "{refused}");
    // What it leaves serves the other one.
    scene.send(1, 1);
    assert_eq!(one(&scene.received).qpn, scene.receivers[1].qpn());
    scene.receivers.clear();
    scene.post(5).unwrap();
    drop(scene);
    appliance.stop();
}
