//! Ports that come and go under traffic: those who use them lose nothing but them, the others notice nothing.
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use rnic::{
    Access, AddressVector, Ah, Completion, ConnectOptions, Context, Cq, EventKind, EventObject, Mr, Pd, Qp,
    QpConfig, QpState, Status,
};
use rnic_tests::probe::Plan;
use rnic_tests::{Appliance, Bystanders, PortSetup, Probe, Setup, Turn, Wire, poll_until, privileged};

const SOON: Option<Duration> = Some(Duration::from_secs(20));
/// Clients with traffic on a port that goes.
const CLIENTS: usize = 4;
/// Receives that stay posted: so many that flushing them takes a core long.
const RECEIVES: u64 = 8000;
/// Writes kept posted.
const WINDOW: u64 = 1000;
/// Bytes of a write.
const LEN: usize = 3000;

/// Everything a client has on a device.
struct End {
    qp: Qp,
    ah: Option<Ah>,
    mr: Mr,
    cq: Cq,
    pd: Pd,
    context: Context,
}

impl End {
    fn new(appliance: &Appliance, device: &str) -> End {
        let context = appliance.open(device);
        let pd = context.alloc_pd().unwrap();
        let cq = context.create_cq(16_384).unwrap();
        let config = QpConfig::new(&cq, &cq)
            .max_send_wr(WINDOW as u32)
            .max_recv_wr(RECEIVES as u32);
        let qp = pd.create_qp(config).unwrap();
        let mr = pd
            .alloc_mr(LEN, Access::LOCAL_WRITE | Access::REMOTE_WRITE)
            .unwrap();
        End {
            qp,
            ah: None,
            mr,
            cq,
            pd,
            context,
        }
    }

    /// Connects both, and posts receives that nothing will use.
    fn connect(&mut self, peer: &mut End) {
        let options = ConnectOptions::default();
        let ours = self.qp.endpoint(&options).unwrap();
        let theirs = peer.qp.endpoint(&options).unwrap();
        self.ah = Some(self.pd.create_ah(&AddressVector::to(theirs.gid)).unwrap());
        peer.qp.connect(&ours, &options).unwrap();
        self.qp.connect(&theirs, &options).unwrap();
        for id in 0..RECEIVES {
            self.qp
                .post_recv(|batch| {
                    batch.recv([]).wr_id(id);
                })
                .unwrap();
        }
    }

    /// Destroys everything, which must be possible.
    fn destroy(self) {
        let End {
            qp,
            ah,
            mr,
            cq,
            pd,
            context,
        } = self;
        qp.destroy().unwrap();
        mr.deregister().unwrap();
        drop((ah, cq, pd, context));
    }
}

/// What was posted to a QP, and what has completed.
#[derive(Default)]
struct Ledger {
    posted: u64,
    sends: Vec<Completion>,
    receives: Vec<Completion>,
    /// Something was posted when the port was gone already.
    late: bool,
}

impl Ledger {
    fn take(&mut self, cq: &Cq) -> usize {
        let mut done = [Completion::default(); 256];
        let count = cq.poll(&mut done);
        for done in &done[..count] {
            let queue = if done.is_recv {
                &mut self.receives
            } else {
                &mut self.sends
            };
            queue.push(*done);
        }
        count
    }

    /// Writes until a completion says that it is over.
    fn write(&mut self, end: &End, peer: &End, moved: &AtomicUsize, removed: &AtomicBool) {
        while self
            .sends
            .last()
            .is_none_or(|done| done.status == Status::Success)
        {
            while self.posted - (self.sends.len() as u64) < WINDOW {
                let id = self.posted;
                end.qp
                    .post(|batch| {
                        batch
                            .write(end.mr.slice(..LEN), peer.mr.remote())
                            .wr_id(id)
                            .signaled();
                    })
                    .unwrap();
                self.posted += 1;
                self.late |= removed.load(Ordering::SeqCst);
            }
            if self.take(&end.cq) == 0 {
                std::thread::yield_now();
            }
            moved.store(self.sends.len(), Ordering::SeqCst);
        }
    }

    /// All that was posted has completed, in order, once: first successes, then flush errors.
    fn check(&mut self, end: &End, at_once: bool) {
        while self.take(&end.cq) > 0 {}
        if !at_once || self.late {
            let _ = poll_until(Duration::from_secs(20), || {
                self.take(&end.cq);
                let all = (self.sends.len() as u64, self.receives.len() as u64) == (self.posted, RECEIVES);
                all.then_some(())
            });
        }
        for (queue, posted) in [(&self.sends, self.posted), (&self.receives, RECEIVES)] {
            assert_eq!(queue.len() as u64, posted, "as many completions as work requests");
            assert!((0..).zip(queue).all(|(id, done)| done.wr_id == id), "in order");
            let good = queue.iter().take_while(|done| done.status == Status::Success);
            let rest = &queue[good.count()..];
            let other = rest.iter().find(|done| done.status != Status::Flushed);
            assert!(other.is_none(), "{other:?}");
        }
        assert!(self.receives.iter().all(|done| done.status == Status::Flushed));
        // A completion too many would be there by now.
        assert_eq!(self.take(&end.cq), 0);
    }
}

/// Waits until the context has heard that its device and its QP are lost, each once.
fn assert_told(end: &End) {
    let mut seen = Vec::new();
    while !seen.contains(&(EventKind::DeviceFatal, EventObject::Device))
        || !seen.contains(&(EventKind::QpFatal, EventObject::Qp(end.qp.qpn())))
    {
        let event = end
            .context
            .next_event(SOON)
            .unwrap()
            .unwrap_or_else(|| panic!("only {seen:?}"));
        assert!(!seen.contains(&(event.kind, event.object)), "{event} comes twice");
        seen.push((event.kind, event.object));
    }
    let more = end.context.next_event(Some(Duration::ZERO)).unwrap();
    assert!(more.is_none(), "{more:?} after {seen:?}");
}

/// What a client on a device that is gone has: everything in error, all of it destroyable, nothing usable.
fn assert_lost(end: &End) {
    assert_told(end);
    assert_eq!(end.qp.query().unwrap().state, QpState::Error);
    let refused = |result: rnic::Result<()>| match result {
        Err(rnic::Error::Daemon { errno, text, .. }) => assert_eq!(errno, libc::ENODEV, "{text}"),
        other => panic!("{other:?}"),
    };
    refused(end.context.alloc_pd().map(drop));
    refused(end.qp.reset());
    let gid = "10.0.0.9".parse::<std::net::IpAddr>().unwrap();
    refused(end.pd.create_ah(&AddressVector::to(gid)).map(drop));
}

/// With few buffers: the memory is for four of them, and one that does not give its buffers back is found.
fn ring(number: u32, peer: u32) -> PortSetup {
    PortSetup::new(number, &format!("{{ ring: {{ peer: rnic{peer} }} }}"))
        .with("rx_descriptors: 512\ntx_descriptors: 512")
}

/// Four ports, two pairs of them back to back, for clients with deep queues.
fn setup(ports: impl IntoIterator<Item = PortSetup>) -> Setup {
    let limits = "limits: { per_client: { queue_memory: 16MiB, cq_depth: 16384 } }";
    Setup::new([ring(0, 1), ring(1, 0)].into_iter().chain(ports))
        .with(limits)
        .with_ports("loopback: wire")
}

fn ctl(appliance: &Appliance, args: &[&str]) {
    let output = appliance.ctl(args);
    assert!(
        output.status.success(),
        "rnicctl {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn names(appliance: &Appliance) -> Vec<String> {
    let ports = appliance.status().ports.into_iter();
    ports.map(|port| port.name).collect()
}

/// Traffic of several clients from one device to another, which `remove` takes away; then their ledgers.
fn under_traffic(ends: &[(End, End)], remove: impl FnOnce()) -> Vec<Ledger> {
    let removed = AtomicBool::new(false);
    let moved: Vec<AtomicUsize> = ends.iter().map(|_| AtomicUsize::new(0)).collect();
    std::thread::scope(|scope| {
        let writers: Vec<_> = ends
            .iter()
            .zip(&moved)
            .map(|((end, peer), moved)| {
                let removed = &removed;
                scope.spawn(move || {
                    let mut ledger = Ledger::default();
                    ledger.write(end, peer, moved, removed);
                    ledger
                })
            })
            .collect();
        let running = poll_until(Duration::from_secs(30), || {
            let all = moved.iter().all(|moved| moved.load(Ordering::SeqCst) > 300);
            all.then_some(())
        });
        assert!(running.is_some(), "{moved:?}");
        remove();
        removed.store(true, Ordering::SeqCst);
        let ledgers = writers.into_iter().map(|writer| writer.join().unwrap());
        ledgers.collect()
    })
}

#[test]
fn a_port_removed_under_traffic_flushes_everything_and_comes_back_while_others_run_on() {
    let _turn = Turn::take();
    for cores in [1, 2] {
        let appliance = Appliance::start(&setup([ring(2, 3), ring(3, 2)]).cores(cores));
        let socket = appliance.socket();
        let mut bystanders = Bystanders::start([(&socket, "rnic0"), (&socket, "rnic1")]);
        let baseline = appliance.counts();
        for _ in 0..2 {
            let mut ends: Vec<_> = (0..CLIENTS)
                .map(|_| (End::new(&appliance, "rnic2"), End::new(&appliance, "rnic3")))
                .collect();
            for (end, peer) in &mut ends {
                end.connect(peer);
            }
            let ledgers = under_traffic(&ends, || ctl(&appliance, &["port", "remove", "rnic2"]));
            // At once: that is what it means that the removal has ended.
            for (mut ledger, (end, _)) in ledgers.into_iter().zip(&ends) {
                ledger.check(end, true);
            }
            assert_eq!(names(&appliance), ["rnic0", "rnic1", "rnic3"]);
            for (end, _) in &ends {
                assert_lost(end);
            }
            bystanders.check();
            ctl(&appliance, &["port", "remove", "rnic3"]);
            for (end, peer) in ends {
                assert_told(&peer);
                end.destroy();
                peer.destroy();
            }
            let clean = poll_until(Duration::from_secs(10), || {
                (appliance.counts() == baseline).then_some(())
            });
            assert!(
                clean.is_some(),
                "{:?} instead of {baseline:?}",
                appliance.counts()
            );
            add(&appliance, &[ring(2, 3), ring(3, 2)]);
            let reports = Probe::run_pair([(&socket, "rnic2"), (&socket, "rnic3")], &Plan::default());
            assert!(reports[0].messages > 100, "{:?}", reports[0]);
            bystanders.check();
        }
        bystanders.finish();
        appliance.stop();
    }
}

/// `rnicctl port add` of ports from a file.
fn add(appliance: &Appliance, ports: &[PortSetup]) {
    let file = appliance.dir().join("ports.yaml");
    let list: String = ports
        .iter()
        .map(|port| port.clone().with("loopback: wire").yaml())
        .collect();
    std::fs::write(&file, list).unwrap();
    ctl(appliance, &["port", "add", file.to_str().unwrap()]);
}

#[test]
fn a_netdev_deleted_under_its_port_takes_the_port_along_and_nothing_else() {
    if !privileged("a_netdev_deleted_under_its_port_takes_the_port_along_and_nothing_else") {
        return;
    }
    let _turn = Turn::take();
    let wire = Wire::new();
    let veth = PortSetup::veth(2).named("rnic2");
    let a = Appliance::start_in("appliance a", &wire.a, &setup([veth.clone()]));
    let mut b = Appliance::start_in("appliance b", &wire.b, &Setup::new([PortSetup::veth(3)]));
    let (ours, theirs) = (a.socket(), b.socket());
    let mut bystanders = Bystanders::start([(&ours, "rnic0"), (&ours, "rnic1")]);
    let baseline = a.counts();
    let mut ends: Vec<_> = (0..CLIENTS)
        .map(|_| (End::new(&a, "rnic2"), End::new(&b, "rnic0")))
        .collect();
    for (end, peer) in &mut ends {
        end.connect(peer);
    }
    let ledgers = under_traffic(&ends, || drop(wire.a.run("ip", &["link", "del", "veth0"])));
    for (mut ledger, (end, _)) in ledgers.into_iter().zip(&ends) {
        ledger.check(end, false);
        assert_lost(end);
    }
    bystanders.check();
    // The other end of the pair is deleted with it.
    for (end, peer) in ends {
        assert_told(&peer);
        end.destroy();
        peer.destroy();
    }
    let gone = poll_until(Duration::from_secs(10), || {
        (names(&a) == ["rnic0", "rnic1"] && names(&b).is_empty() && a.counts() == baseline).then_some(())
    });
    assert!(
        gone.is_some(),
        "{:?} {:?}, {:?}",
        names(&a),
        names(&b),
        a.counts()
    );
    b.assert_alive();

    // Devices of the same name, and ports on them.
    wire.join();
    add(&a, &[veth]);
    add(&b, &[PortSetup::veth(3)]);
    let reports = Probe::run_pair([(&ours, "rnic2"), (&theirs, "rnic0")], &Plan::default());
    assert!(reports[0].messages > 100, "{:?}", reports[0]);
    bystanders.finish();
    a.stop();
    b.stop();
}
