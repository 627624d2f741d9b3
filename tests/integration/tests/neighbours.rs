//! A peer's MAC address changes amid traffic: the traffic goes on, exact to the byte.
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rnic_tests::{Appliance, Bystanders, PortSetup, RawPort, Setup, Turn, Wire, poll_until, privileged};

type Mac = [u8; 6];

/// Where the MAC address of a frame's sender stands in ARP.
const ARP_SENDER: std::ops::Range<usize> = 22..28;
const ARP: [u8; 2] = [8, 6];
const IPV4: [u8; 2] = [8, 0];

/// A neighbour that moves again sooner than this is asked first.
const SETTLED: Duration = Duration::from_millis(150);

/// What the bridge does to frames of the peer.
#[derive(Clone, Copy)]
struct Disguise {
    /// The MAC address the peer has.
    real: Mac,
    /// The one it seems to have.
    alias: Mac,
}

/// Joins two wires, and makes the appliance on the second one appear under another MAC address.
struct Bridge {
    disguise: Arc<Mutex<Disguise>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Bridge {
    fn start(ours: RawPort, peers: RawPort, disguise: Disguise) -> Bridge {
        let (disguise, stop) = (Arc::new(Mutex::new(disguise)), Arc::new(AtomicBool::new(false)));
        let thread = std::thread::spawn({
            let (disguise, stop) = (disguise.clone(), stop.clone());
            move || {
                while !stop.load(Ordering::Relaxed) {
                    for mut frame in ours.receive(64, Duration::from_millis(1)) {
                        let Disguise { real, alias } = *disguise.lock().unwrap();
                        if frame[..6] == alias {
                            frame[..6].copy_from_slice(&real);
                        } else if frame[0] & 1 == 0 {
                            // To an address that nobody has any more.
                            continue;
                        }
                        peers.send(&frame);
                    }
                    for mut frame in peers.receive(64, Duration::from_millis(1)) {
                        let Disguise { alias, .. } = *disguise.lock().unwrap();
                        if frame[12..14] != IPV4 && frame[12..14] != ARP {
                            continue;
                        }
                        frame[6..12].copy_from_slice(&alias);
                        if frame[12..14] == ARP {
                            frame[ARP_SENDER].copy_from_slice(&alias);
                        }
                        ours.send(&frame);
                    }
                }
            }
        });
        Bridge {
            disguise,
            stop,
            thread: Some(thread),
        }
    }

    fn disguise_as(&self, alias: Mac) {
        self.disguise.lock().unwrap().alias = alias;
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// "10.0.0.2 is at `mac`", to everyone.
fn announcement(mac: Mac) -> Vec<u8> {
    let mut frame = vec![0xFF; 6];
    frame.extend(mac);
    frame.extend(ARP);
    frame.extend([0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend(mac);
    frame.extend([10, 0, 0, 2]);
    frame.extend([0; 6]);
    frame.extend([10, 0, 0, 2]);
    frame.resize(60, 0);
    frame
}

fn text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

#[test]
fn traffic_goes_on_when_the_mac_address_of_the_peer_changes() {
    if !privileged("traffic_goes_on_when_the_mac_address_of_the_peer_changes") {
        return;
    }
    let _turn = Turn::take();
    let (ours, peers) = (Wire::new(), Wire::new());
    let a = Appliance::start_in("appliance a", &ours.a, &Setup::new([PortSetup::veth(0)]));
    let b = Appliance::start_in("appliance b", &peers.a, &Setup::new([PortSetup::veth(1)]));
    let real = b.open("rnic0").query_port().expect("the port is there").mac;
    let alias = |number: u8| [2, 0, 0, 0, 0x77, number];
    let bridge = Bridge::start(
        RawPort::open(&ours.b),
        RawPort::open(&peers.b),
        Disguise {
            real,
            alias: alias(0),
        },
    );
    let mut bystanders = Bystanders::start([(&a.socket(), "rnic0"), (&b.socket(), "rnic0")]);
    let peer = || {
        let all = a.ctl_json(&["neigh"]);
        let peer = all.as_array()?.iter().find(|n| n["ip"] == "10.0.0.2")?;
        Some(peer.clone())
    };
    let shown = peer().expect("the peer is a neighbour");
    assert_eq!(
        (&shown["mac"], &shown["device"]),
        (&text(alias(0)).into(), &"rnic0".into())
    );
    assert!(shown["users"].as_u64() > Some(0), "{shown}");
    for number in 1..=5 {
        bridge.disguise_as(alias(number));
        // Closed at once: frames that a socket keeps unread are missing in the port of their sender.
        RawPort::open(&ours.b).send(&announcement(alias(number)));
        let moved = poll_until(Duration::from_secs(10), || {
            (peer()?["mac"] == text(alias(number))).then_some(())
        });
        assert!(moved.is_some(), "{:?}", peer());
        // Whole rounds over the new address, or the probes give up; until another move is believed at once.
        let settled = Instant::now() + SETTLED;
        while Instant::now() < settled {
            bystanders.check();
        }
    }
    bystanders.finish();
    let unused = poll_until(Duration::from_secs(10), || (peer()?["users"] == 0).then_some(()));
    assert!(unused.is_some(), "{:?}", peer());
    drop(bridge);
    a.stop();
    b.stop();
}
