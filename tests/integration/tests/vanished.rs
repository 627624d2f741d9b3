//! A device that is unplugged, as its driver says on DPDK's interrupt thread. The daemon runs in this very process,
//! where that can be pretended: no virtual device here can be unplugged in earnest.
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use dpdk_sys::{Eal, pretend_removal};
use rnic::{Access, Completion, ConnectOptions, Context, EventKind, EventObject, QpConfig, QpState, Status};
use rnic_config::Config;
use rnic_control::{AdminRequest, AdminResponse, daemon, request_line, socket};
use rnic_tests::{PortSetup, Setup, Turn, poll_until};

const SOON: Duration = Duration::from_secs(20);
const RECEIVES: u64 = 500;

fn ask(dir: &Path, request: AdminRequest) -> Result<serde_json::Value, String> {
    let mut stream = UnixStream::connect(dir.join("admin.sock")).unwrap();
    stream.write_all(request_line(request).as_bytes()).unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    match serde_json::from_str(&line).unwrap() {
        AdminResponse::Ok(value) => Ok(value),
        AdminResponse::Error(text) => Err(text),
    }
}

fn ports(dir: &Path) -> Vec<String> {
    let status = ask(dir, AdminRequest::Status).unwrap();
    let ports = status["ports"].as_array().unwrap();
    let name = |port: &serde_json::Value| port["name"].as_str().unwrap().to_owned();
    ports.iter().map(name).collect()
}

fn null(number: u32) -> PortSetup {
    // It receives nothing, and what it sends is gone.
    PortSetup::new(number, &format!("{{ vdev: \"net_null{number},no-rx=1\" }}")).mtu(1500)
}

/// A context with a QP connected to itself, and receives posted that nothing uses.
struct Client {
    qp: rnic::Qp,
    cq: rnic::Cq,
    pd: rnic::Pd,
    context: Context,
}

impl Client {
    fn new(dir: &Path, device: &str) -> Client {
        let context = Context::open(dir.join("rnicd.sock"), device).unwrap();
        let (pd, cq) = (context.alloc_pd().unwrap(), context.create_cq(1024).unwrap());
        let config = QpConfig::new(&cq, &cq).max_recv_wr(RECEIVES as u32);
        let qp = pd.create_qp(config).unwrap();
        let options = ConnectOptions::default();
        let own = qp.endpoint(&options).unwrap();
        qp.connect(&own, &options).unwrap();
        for id in 0..RECEIVES {
            qp.post_recv(|batch| {
                batch.recv([]).wr_id(id);
            })
            .unwrap();
        }
        Client { qp, cq, pd, context }
    }

    /// All that must come when the device is lost, once.
    fn assert_lost(&self) {
        let mut seen = Vec::new();
        for _ in 0..2 {
            let event = self.context.next_event(Some(SOON)).unwrap();
            let event = event.unwrap_or_else(|| panic!("only {seen:?}"));
            seen.push((event.kind, event.object));
        }
        assert!(
            seen.contains(&(EventKind::DeviceFatal, EventObject::Device)),
            "{seen:?}"
        );
        let fatal = (EventKind::QpFatal, EventObject::Qp(self.qp.qpn()));
        assert!(seen.contains(&fatal), "{seen:?}");
        let more = self.context.next_event(Some(Duration::ZERO)).unwrap();
        assert!(more.is_none(), "{more:?}");
        assert_eq!(self.qp.query().unwrap().state, QpState::Error);
        let mut flushed = Vec::new();
        let all = poll_until(SOON, || {
            let mut done = [Completion::default(); 64];
            let count = self.cq.poll(&mut done);
            flushed.extend_from_slice(&done[..count]);
            (count == 0 && flushed.len() as u64 >= RECEIVES).then_some(())
        });
        assert!(
            all.is_some() && flushed.len() as u64 == RECEIVES,
            "{} of {RECEIVES}",
            flushed.len()
        );
        let mut in_order = (0..).zip(&flushed);
        assert!(in_order.all(|(id, done)| (done.wr_id, done.status) == (id, Status::Flushed)));
        match self.context.alloc_pd() {
            Err(rnic::Error::Daemon { errno, .. }) => assert_eq!(errno, libc::ENODEV),
            other => panic!("{:?}", other.map(drop)),
        }
    }
}

#[test]
fn a_port_whose_driver_says_that_its_device_was_unplugged_is_drained_as_if_it_had_been_removed() {
    let _turn = Turn::take();
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let text = Setup::new([null(0), null(1)]).yaml(dir);
    let config = Config::parse(&text, "rnicd.yaml").unwrap_or_else(|error| panic!("{error}"));
    let (stop, theirs) = socket::pair().unwrap();
    let control = daemon::start(config, theirs).unwrap_or_else(|error| panic!("{error}"));
    let daemon = std::thread::spawn(move || control.run());
    for round in 0..2 {
        let (lost, other) = (Client::new(dir, "rnic1"), Client::new(dir, "rnic0"));
        pretend_removal(&Eal::running().unwrap(), "net_null1").unwrap();
        let drained = poll_until(SOON, || (ports(dir) == ["rnic0"]).then_some(()));
        assert!(drained.is_some(), "{:?}", ports(dir));
        lost.assert_lost();
        let Client { qp, cq, pd, context } = lost;
        qp.destroy().unwrap();
        drop((cq, pd, context));
        // The other port is as it was.
        assert_eq!(other.qp.query().unwrap().state, QpState::Rts);
        assert_eq!(other.cq.poll(&mut [Completion::default()]), 0);
        other
            .pd
            .alloc_mr(64, Access::LOCAL_WRITE)
            .unwrap()
            .deregister()
            .unwrap();
        // The name and the place on the bus are free: the device is plugged in again.
        let mut refusal = String::new();
        let added = poll_until(SOON, || {
            let ports = null(1).yaml();
            // Until the last one is closed.
            let added = ask(dir, AdminRequest::PortAdd { ports });
            added.map_err(|why| refusal = why).ok()
        });
        let added = added.unwrap_or_else(|| panic!("{refusal}"));
        assert_eq!(added[0]["name"], "rnic1", "round {round}: {added}");
    }
    socket::wake(&stop);
    assert!(daemon.join().unwrap(), "a poll core failed");
}
