//! Neighbours that move under QPs and address handles.
use std::time::Instant;

use rnic_abi::*;
use rnic_engine::frame::FrameBurst;

use super::{
    ah::create_while_served,
    hostile::ring,
    wire::{PORT, Station, qp},
};
use crate::{
    device,
    neighbour::{Question, Target},
    slowpath::SlowPath,
    testing::*,
};

const MOVED: [u8; 6] = [2, 0, 0, 0, 0, 0x77];
const PEER: &str = "10.0.0.9";

impl Station {
    /// Goes on with another MAC address, and says so to everyone if it is not shy.
    fn move_to(&mut self, mac: [u8; 6], announce: bool) {
        let mut device = device::sample("station", 0, &[(PEER, 24)]);
        device.mac = mac;
        self.slow = SlowPath::new(&[device], Instant::now());
        if announce {
            let ip = PEER.parse().unwrap();
            let own = Target {
                port: 0,
                vlan: None,
                ip,
                from: ip,
            };
            self.slow.ask(&own, Question::All);
            self.send();
        }
    }

    /// The frames of RoCE that have come, by the MAC address they were sent to.
    fn roce_to(&mut self) -> Vec<[u8; 6]> {
        let mut burst = FrameBurst::new();
        self.port.queues[0].rx_burst(&mut burst);
        let mut all = Vec::new();
        for frame in burst.drain(..) {
            let bytes = frame.bytes();
            if bytes[12..14] == [8, 0] && bytes[36..38] == 4791u16.to_be_bytes() {
                all.push(bytes[..6].try_into().unwrap());
            } else {
                self.slow.receive(0, bytes, None, Instant::now());
            }
        }
        self.send();
        all
    }
}

/// A QP in RTS with a WRITE that nobody acknowledges: it is sent again and again.
fn talking_qp(client: &mut Client, station: &mut Station) -> CreateQpReply {
    let qp = qp(client);
    let arg = ModifyQp {
        handle: qp.handle,
        mask: RTR,
        attrs: rtr(PEER, 77),
    };
    client.send(Op::ModifyQp, &arg, &[]);
    wait_for(|| {
        station.serve();
        client.wait(std::time::Duration::from_millis(1))
    });
    client.result::<Empty>().unwrap();
    client.make_rts(qp.handle);
    let write = Wqe {
        units: 1,
        ..zerocopy::FromZeros::new_zeroed()
    };
    let at = qp.sq_offset as usize + RING_ENTRIES;
    assert!(client.context().region.write(at, &write));
    ring(client, &qp, 1);
    qp
}

#[test]
fn qps_and_ahs_follow_a_neighbour_that_announces_another_mac_address() {
    let (daemon, wire) = TestDaemon::with_wire(PORT);
    let mut station = Station::new(wire, &[(PEER, 24)]);
    let first = station.port.mac;
    let mut client = daemon.client();
    let _qp = talking_qp(&mut client, &mut station);
    let pd = client.pd();
    let ah = create_while_served(&mut client, &mut station, pd, PEER);
    wait_for(|| station.roce_to().contains(&first));
    let shown = &daemon.neighbours()[0];
    assert_eq!((shown.users, shown.state.as_str()), (2, "reachable"));

    station.move_to(MOVED, true);
    wait_for(|| station.roce_to().contains(&MOVED));
    assert_eq!(client.query_ah(ah.handle).unwrap().next_hop, MOVED);
    // The core has the path for good.
    assert!(station.roce_to().iter().all(|mac| *mac == MOVED));
}

#[test]
fn a_qp_that_is_reset_or_destroyed_lets_its_neighbour_go() {
    let (daemon, wire) = TestDaemon::with_wire(PORT);
    let mut station = Station::new(wire, &[(PEER, 24)]);
    let mut client = daemon.client();
    let users = || daemon.neighbours().first().map_or(0, |shown| shown.users);
    let qp = talking_qp(&mut client, &mut station);
    assert_eq!(users(), 1);
    let attrs = QpAttrs::default();
    client.modify(qp.handle, qp_mask::STATE, attrs).unwrap();
    assert_eq!(users(), 0);
    client.make_init(qp.handle);
    client.make_rtr(qp.handle, PEER, 78).unwrap();
    assert_eq!(users(), 1);
    client.destroy_counting(Op::DestroyQp, qp.handle);
    assert_eq!(users(), 0);
}

#[test]
fn a_neighbour_that_moves_while_a_qp_is_connected_is_followed_all_the_same() {
    let (daemon, wire) = TestDaemon::with_wire(PORT);
    let mut station = Station::new(wire, &[(PEER, 24)]);
    let mut client = daemon.client();
    // Known before, and moved between the lookup and the answer of the core as often as that happens.
    for round in 0..20u8 {
        let mac = [2, 0, 0, 0, 1, round];
        station.move_to(mac, round > 0);
        // A move too soon after the last one is not believed at once.
        wait_for(|| {
            station.roce_to();
            let believed = daemon.neighbours().first().map(|shown| shown.mac.clone());
            let believed = round == 0 || believed == Some(Some(format!("02:00:00:00:01:{round:02x}")));
            if !believed {
                station.move_to(mac, true);
            }
            believed
        });
        let qp = talking_qp(&mut client, &mut station);
        wait_for(|| station.roce_to().contains(&mac));
        client.destroy_counting(Op::DestroyQp, qp.handle);
    }
}
