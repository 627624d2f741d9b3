//! DPDK's own quiescent-state reclamation, which benchmarks compare with.

use dpdk_sys::RcuQsbr;

#[test]
fn a_grace_period_ends_when_every_online_thread_has_been_quiescent() {
    let qsbr = RcuQsbr::new(2).expect("a sane number");
    let [mut first, mut second] = [0, 1].map(|id| qsbr.reader(id).expect("nobody has it"));
    first.online();
    second.online();

    let token = qsbr.start();
    assert!(!qsbr.check(token));
    first.quiescent();
    assert!(!qsbr.check(token));
    second.quiescent();
    assert!(qsbr.check(token));

    let token = qsbr.start();
    first.quiescent();
    second.offline();
    assert!(qsbr.check(token));
}

#[test]
fn a_reader_is_had_by_one_at_a_time_and_comes_back() {
    let qsbr = RcuQsbr::new(1).expect("a sane number");
    let reader = qsbr.reader(0).expect("nobody has it");
    assert!(qsbr.reader(0).is_none());
    assert!(qsbr.reader(1).is_none());
    drop(reader);
    assert!(qsbr.reader(0).is_some());
    assert!(RcuQsbr::new(0).is_none());
}
