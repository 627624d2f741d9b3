use std::time::{Duration, Instant};

use rnic_abi::*;
use rnic_engine::{frame::FrameBurst, port::OpenPort};
use rustix::io::Errno;

use crate::{
    device,
    neighbour::{Question, Target},
    slowpath::SlowPath,
    testing::*,
};

pub const PORT: &str = "addresses: [10.0.0.1/24, 'fd00::1/64'], gateways: [10.0.0.254]";

/// A station at the other end of the wire: it answers for its addresses.
pub struct Station {
    pub port: OpenPort,
    pub slow: SlowPath,
    start: Instant,
}

impl Station {
    pub fn new(port: OpenPort, addresses: &[(&str, u8)]) -> Self {
        let mut device = device::sample("station", 0, addresses);
        device.mac = port.mac;
        let start = Instant::now();
        Station {
            port,
            slow: SlowPath::new(&[device], start),
            start,
        }
    }

    pub fn send(&mut self) {
        let mut burst = FrameBurst::new();
        while let Some(out) = self.slow.next_outgoing() {
            let mut frame = self.port.pool.alloc().unwrap();
            assert!(frame.fill(&out.bytes));
            burst.push(frame);
        }
        self.port.queues[0].tx_burst(&mut burst);
        assert!(burst.is_empty());
    }

    /// Answers what came in; returns the frames.
    pub fn serve(&mut self) -> Vec<Vec<u8>> {
        let mut burst = FrameBurst::new();
        self.port.queues[0].rx_burst(&mut burst);
        let mut frames = Vec::new();
        for frame in burst.drain(..) {
            self.slow.receive(0, frame.bytes(), None, Instant::now());
            frames.push(frame.bytes().to_vec());
        }
        self.send();
        frames
    }
}

pub fn qp(client: &mut Client) -> CreateQpReply {
    let (pd, cq) = (client.pd(), client.cq());
    let qp = client.qp(pd, cq);
    client.make_init(qp.handle);
    qp
}

#[test]
fn a_neighbour_is_asked_for_by_arp_and_by_neighbour_discovery() {
    let (daemon, wire) = TestDaemon::with_wire(PORT);
    let mut station = Station::new(wire, &[("10.0.0.9", 24), ("fd00::9", 64)]);
    let mut client = daemon.client();
    for (peer, sgid_index) in [("10.0.0.9", 0), ("fd00::9", 1)] {
        let qp = qp(&mut client);
        let mut attrs = rtr(peer, 77);
        attrs.ah_attr.sgid_index = sgid_index;
        client.send(
            Op::ModifyQp,
            &ModifyQp {
                handle: qp.handle,
                mask: RTR,
                attrs,
            },
            &[],
        );
        wait_for(|| {
            station.serve();
            client.wait(Duration::from_millis(1))
        });
        client.result::<Empty>().unwrap();
    }
}

#[test]
fn a_peer_behind_the_gateway_needs_the_gateways_address() {
    let (daemon, wire) = TestDaemon::with_wire(PORT);
    let mut station = Station::new(wire, &[("10.0.0.254", 24)]);
    let mut client = daemon.client();
    let qp = qp(&mut client);
    client.send(
        Op::ModifyQp,
        &ModifyQp {
            handle: qp.handle,
            mask: RTR,
            attrs: rtr("192.0.2.7", 77),
        },
        &[],
    );
    wait_for(|| {
        station.serve();
        client.wait(Duration::from_millis(1))
    });
    client.result::<Empty>().unwrap();
}

#[test]
fn a_silent_neighbour_is_a_refusal_and_holds_up_no_other_client() {
    let (daemon, _wire) = TestDaemon::with_wire(PORT);
    let (mut waiting, mut other) = (daemon.client(), daemon.client());
    let silent = qp(&mut waiting);
    let arg = ModifyQp {
        handle: silent.handle,
        mask: RTR,
        attrs: rtr("10.0.0.9", 77),
    };
    waiting.send(Op::ModifyQp, &arg, &[]);
    for _ in 0..20 {
        let made = qp(&mut other);
        other.destroy_counting(Op::DestroyQp, made.handle);
    }
    assert!(
        !waiting.wait(Duration::ZERO),
        "it was refused before it was asked again"
    );
    let refused = waiting.result::<Empty>().unwrap_err();
    assert_eq!(refused.errno, Errno::HOSTUNREACH);
    assert!(refused.text.contains("10.0.0.9"), "{}", refused.text);
    let reply: QueryQpReply = waiting
        .call(
            Op::QueryQp,
            &HandleArg {
                handle: silent.handle,
                reserved: 0,
            },
        )
        .unwrap();
    assert_eq!(reply.attrs.qp_state, 1, "the QP was changed all the same");
}

#[test]
fn a_client_that_dies_while_a_neighbour_is_asked_for_leaves_nothing() {
    let (daemon, _wire) = TestDaemon::with_wire(PORT);
    let mut client = daemon.client();
    let qp = qp(&mut client);
    let arg = ModifyQp {
        handle: qp.handle,
        mask: RTR,
        attrs: rtr("10.0.0.9", 77),
    };
    client.send(Op::ModifyQp, &arg, &[]);
    drop(client);
    daemon.wait_for_baseline();
}

#[test]
fn a_configured_neighbour_is_not_asked_for() {
    let with = format!("{PORT}, neighbours: [{{ip: 10.0.0.9, mac: '02:00:00:00:00:09'}}]");
    let (daemon, wire) = TestDaemon::with_wire(&with);
    let mut station = Station::new(wire, &[]);
    let mut client = daemon.client();
    let qp = qp(&mut client);
    client.make_rtr(qp.handle, "10.0.0.9", 77).unwrap();
    let asked = station.serve().iter().any(|frame| frame[12..14] == [8, 6]);
    assert!(!asked);
}

#[test]
fn the_port_answers_for_its_addresses() {
    let (_daemon, wire) = TestDaemon::with_wire(PORT);
    let mac = rnic_engine::port::mac_of_name("rnic0");
    let mut station = Station::new(wire, &[("10.0.0.9", 24), ("fd00::9", 64)]);
    for (from, ip) in [("10.0.0.9", "10.0.0.1"), ("fd00::9", "fd00::1")] {
        let ip = ip.parse().unwrap();
        let target = Target {
            port: 0,
            vlan: None,
            ip,
            from: from.parse().unwrap(),
        };
        station.slow.ask(&target, Question::All);
        station.send();
        let mut answered = false;
        wait_for(|| {
            let mut burst = FrameBurst::new();
            station.port.queues[0].rx_burst(&mut burst);
            for frame in burst.drain(..) {
                let (heard, _) = station.slow.receive(0, frame.bytes(), None, station.start);
                answered |= heard.is_some_and(|h| h.ip == ip && h.mac == mac);
            }
            answered
        });
    }
}

#[test]
fn a_link_that_goes_down_is_an_event_of_its_port_for_every_client() {
    let (daemon, mut wire) = TestDaemon::with_wire(PORT);
    let mut clients = [daemon.client(), daemon.client()];
    wire.link.close();
    for client in &mut clients {
        assert_eq!(client.event(0), (0, event_kind::PORT_ERR));
        let at = client.context().layout.event_slots;
        let slot: EventSlot = client.context().region.read(at).unwrap();
        assert_eq!((slot.number, slot.sequence), (1, 1));
        let port: PortReply = client.call(Op::QueryPort, &DeviceArg::default()).unwrap();
        assert_eq!(port.state, 1);
    }
    assert_eq!(daemon.status().ports[0].state, "down");
}
