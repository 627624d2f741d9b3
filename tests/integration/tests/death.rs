//! Clients that die.
use std::time::{Duration, Instant};

use rnic_tests::probe::{Plan, Rng};
use rnic_tests::{Appliance, Bystanders, Probe, Setup, Turn, poll_until};

/// How long after a client's death everything of it may still be there.
const LIMIT: Duration = Duration::from_secs(1);

#[test]
fn within_a_second_of_kill_9_amid_traffic_nothing_is_left_and_others_run_on() {
    let _turn = Turn::take();
    let appliance = Appliance::start(&Setup::back_to_back().with_ports("loopback: wire"));
    let socket = appliance.socket();
    let at = [(&*socket, "rnic0"), (&*socket, "rnic1")];
    let mut bystanders = Bystanders::start(at);
    let baseline = appliance.counts();
    assert_eq!(
        (baseline.clients, baseline.qps, baseline.bytes_awaiting_grace),
        (2, 2, 0)
    );

    let mut rng = Rng::new(&[5]);
    for _ in 0..5 {
        let plan = Plan {
            endless: true,
            mtus: vec![4096],
            seed: rng.next(),
            size_max: 200_000,
            ..Plan::default()
        };
        let mut victims = Probe::pair(at, &plan);
        victims[0].progress();
        assert_eq!(appliance.counts().clients, 4);
        // Some moment of a round, so that reads, writes and completions are under way.
        std::thread::sleep(Duration::from_micros(rng.below(30_000) as u64));
        let [first, second] = victims;
        second.kill();
        let died = first.kill();
        let clean = poll_until(LIMIT.saturating_sub(died.elapsed()), || {
            (appliance.counts() == baseline).then(Instant::now)
        });
        let Some(clean) = clean else {
            panic!("{:?} after {LIMIT:?} instead of {baseline:?}", appliance.counts())
        };
        println!("clean {:?} after the death", clean - died);
        bystanders.check();
    }
    bystanders.finish();
    appliance.stop();
}

#[test]
fn the_peer_of_a_killed_client_learns_it_from_its_completions() {
    let _turn = Turn::take();
    let appliance = Appliance::start(&Setup::back_to_back().with_ports("loopback: wire"));
    let context = appliance.open("rnic0");
    let pd = context.alloc_pd().unwrap();
    let cq = context.create_cq(16).unwrap();
    let qp = pd.create_qp(rnic::QpConfig::new(&cq, &cq)).unwrap();
    let options = rnic::ConnectOptions {
        timeout: 10,
        retry_cnt: 2,
        ..Default::default()
    };
    {
        let other = appliance.open("rnic1");
        let their_pd = other.alloc_pd().unwrap();
        let their_cq = other.create_cq(16).unwrap();
        let theirs = their_pd
            .create_qp(rnic::QpConfig::new(&their_cq, &their_cq))
            .unwrap();
        let [ours, other] = [qp.endpoint(&options).unwrap(), theirs.endpoint(&options).unwrap()];
        theirs.connect(&ours, &options).unwrap();
        qp.connect(&other, &options).unwrap();
    }
    qp.post(|batch| {
        batch.send([]).wr_id(3).signaled();
    })
    .unwrap();
    let done = cq.wait_vec(1, Some(Duration::from_secs(20))).unwrap();
    assert_eq!((done[0].wr_id, done[0].status), (3, rnic::Status::RetryExceeded));
    let attr = qp.query().unwrap();
    assert_eq!(attr.state, rnic::QpState::Error);
    drop(qp);
    appliance.stop();
}
