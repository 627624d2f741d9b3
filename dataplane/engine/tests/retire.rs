//! What poll cores give up reaches the control thread, whatever it takes, and is freed there after a grace period.
mod common;

use std::time::{Duration, Instant};

use common::{Rig, path};
use rnic_engine::{
    command::{Command, Message, QpChange},
    core::Idle,
    nonblocking::CheckedAllocator,
    view::{Kind, slot_of},
};
use rnic_transport::{QpAttr, QpAttrMask};

/// A core that frees what it gives up, or allocates to give it up, aborts the test.
#[global_allocator]
static ALLOCATOR: CheckedAllocator = CheckedAllocator;

fn wait(mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain");
        std::thread::yield_now();
    }
}

#[test]
fn a_core_whose_pages_are_all_under_way_gives_up_objects_all_the_same() {
    let mut rig = Rig::with_idle(1, vec![], Idle::Pause);
    let qp = rig.create_qp(3);
    let slot = slot_of(rig.qps[qp].qpn);
    let before = rig.engine.core_status(0).counters.retired_without_page;
    // Nobody collects, so the pages run out long before the answers do.
    let (cq, offset) = (7, rig.qps[qp].cq);
    wait(|| {
        let queue = rig.engine.make_cq(rig.cq_init(cq, 0, offset)).unwrap();
        let token = rig.token();
        rig.engine.submit(0, Command::AddCq { cq, queue, token });
        // A pass that began after it was told, so that each object has a page to itself.
        for _ in 0..2 {
            let epoch = rig.engine.start_grace();
            wait(|| rig.engine.is_past(epoch));
        }
        rig.engine.core_status(0).counters.retired_without_page > before
    });
    // Objects of other kinds go the same way; each is answered when it has arrived.
    let qpn = rig.qps[qp].qpn;
    rig.engine.publisher().remove(Kind::Qp, qpn).unwrap();
    rig.engine.commit();
    let token = rig.token();
    rig.engine.submit(0, Command::RemoveQp { slot, token });
    assert!(matches!(rig.answer(token), Message::Removed { found: true, .. }));
    rig.engine.stop();
}

#[test]
fn what_was_given_up_is_freed_when_its_grace_period_is_seen_to_be_over() {
    let mut rig = Rig::with_idle(1, vec![], Idle::Pause);
    let qp = rig.create_qp(3);
    let region = std::sync::Arc::downgrade(&rig.region);
    let held = region.strong_count();
    rig.engine.tidy();
    let baseline = rig.engine.bytes_awaiting_grace();
    rig.destroy_qp(qp);
    assert_eq!(
        region.strong_count(),
        held - 2,
        "both of its queues had hold of the region"
    );
    rig.engine.tidy();
    assert!(rig.engine.bytes_awaiting_grace() <= baseline);
    rig.engine.stop();
}

#[test]
fn an_object_that_takes_the_place_of_another_does_not_free_it_on_the_core() {
    let mut rig = Rig::with_idle(1, vec![], Idle::Pause);
    let first = rig.create_qp(3);
    let second = rig.create_qp(3);
    assert_eq!(rig.qps[first].qpn, rig.qps[second].qpn);
    rig.destroy_qp(second);
    rig.engine.stop();
}

#[test]
fn nothing_at_the_place_of_a_command_is_an_answer_too() {
    let mut rig = Rig::with_idle(1, vec![], Idle::Pause);
    for make in [
        |token| Command::RemoveQp { slot: 9, token },
        |token| Command::RemoveCq { cq: 9, token },
        |token| Command::RemoveClient { client: 2, token },
    ] {
        let token = rig.token();
        rig.engine.submit(0, make(token));
        assert!(matches!(rig.answer(token), Message::Removed { found: false, .. }));
    }
    let (slot, token) = (9, rig.token());
    let change = Box::new(QpChange {
        attr: QpAttr::default(),
        mask: QpAttrMask::STATE,
        path: None,
    });
    rig.engine.submit(0, Command::ModifyQp { slot, change, token });
    assert!(matches!(
        rig.answer(token),
        Message::Modified { result: None, .. }
    ));
    rig.engine.stop();
}

#[test]
fn the_path_of_a_neighbour_that_moved_comes_back_whether_or_not_there_is_a_qp_for_it() {
    let mut rig = Rig::with_idle(1, vec![], Idle::Pause);
    let qp = rig.create_qp(3);
    for slot in [slot_of(rig.qps[qp].qpn), 9] {
        let path = Box::new(path(1, 2, false));
        rig.engine.submit(0, Command::Repath { slot, path });
        assert_eq!(rig.engine.unanswered(0), 1);
        wait(|| {
            rig.engine.poll(|_, _| {});
            // Else the core would owe an answer for ever, and count as stalled in the end.
            rig.engine.unanswered(0) == 0
        });
    }
    rig.engine.stop();
}
