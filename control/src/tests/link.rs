//! What clients are told of a link that goes down and comes up again.
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use rnic_abi::{
    event_kind::{PORT_ACTIVE, PORT_ERR},
    *,
};
use rnic_engine::port::Link;

use crate::testing::*;

const DOWN: u32 = 1;
const ACTIVE: u32 = 4;

/// A link that is as the test says.
#[derive(Clone)]
struct Cable(Arc<AtomicBool>);

impl Cable {
    fn set(&self, up: bool) {
        self.0.store(up, Ordering::Release);
    }
}

impl Link for Cable {
    fn is_up(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
    fn speed_mbps(&self) -> Option<u32> {
        None
    }
    fn close(&mut self) {}
}

fn state(client: &mut Client) -> u32 {
    client
        .call::<PortReply>(Op::QueryPort, &DeviceArg::default())
        .unwrap()
        .state
}

/// The sequence number of the port's state, in the slot of the device.
fn sequence(client: &Client) -> u32 {
    let Context { layout, region, .. } = client.context();
    region.read::<EventSlot>(layout.event_slots).unwrap().sequence
}

#[test]
fn each_change_of_a_link_is_told_and_who_reads_late_ends_at_its_true_state() {
    let cable = Cable(Arc::new(AtomicBool::new(true)));
    let daemon = TestDaemon::with_link(cable.clone());
    let [mut prompt, mut late] = [daemon.client(), daemon.client()];
    assert_eq!((sequence(&prompt), state(&mut prompt)), (0, ACTIVE));
    // Odd numbers say that it is down, even ones that it is up.
    let changes = [(true, PORT_ACTIVE, ACTIVE), (false, PORT_ERR, DOWN)];
    let mut changed = 0;
    // Of what the late one has missed it finds every kind in one entry, and beside it what is true.
    for (head, until, missed) in [(0, 3, PORT_ERR | PORT_ACTIVE), (1, 4, PORT_ACTIVE)] {
        while changed < until {
            changed += 1;
            let (up, kind, now) = changes[changed as usize % 2];
            cable.set(up);
            assert_eq!(prompt.event(changed - 1), (0, kind));
            assert_eq!((sequence(&prompt), state(&mut prompt)), (changed, now));
        }
        late.await_events(head + 1);
        assert_eq!(late.event(head), (0, missed));
        let (_, _, now) = changes[changed as usize % 2];
        assert_eq!((sequence(&late), state(&mut late)), (changed, now));
    }
    // One that comes later knows where it begins.
    let mut fresh = daemon.client();
    assert_eq!((sequence(&fresh), state(&mut fresh)), (4, ACTIVE));
}
