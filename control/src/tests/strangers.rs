//! Connections on which nobody says hello.
use std::time::{Duration, Instant};

use rnic_abi::{Hello, HelloReply, Op};

use crate::{
    control::{HELLO_WITHIN, STRANGERS},
    testing::{Client, HeldControl},
};

const LIMITS: &str = "limits: {clients: 2, per_client: {queue_memory: 8MiB, cq_depth: 1024}}";

fn connected(daemon: &mut HeldControl, count: usize) -> Vec<Client> {
    let before = daemon.control.connections.len();
    let connect = |socket: &std::path::Path| (0..count).map(|_| Client::connect(socket)).collect();
    let clients = daemon.serve(connect);
    daemon.run_until(|control| control.connections.len() == before + count);
    clients
}

fn is_closed(client: &Client) -> bool {
    client.wait(Duration::ZERO) && client.receive().is_none()
}

#[test]
fn those_who_say_no_hello_give_their_places_back_and_those_who_did_keep_theirs() {
    let mut daemon = HeldControl::with(1, LIMITS);
    let mut client = daemon.serve(|socket| {
        let mut client = Client::connect(socket);
        client.hello();
        client
    });
    // One of them speaks, but makes no sense.
    let strangers = connected(&mut daemon, STRANGERS + 1);
    strangers[0].send_raw(b"hello", &[]);
    daemon.serve(|_| assert!(strangers[0].receive().is_some(), "refused, and may try again"));
    // Every place is taken.
    daemon.serve(|socket| assert!(Client::connect(socket).receive().is_none()));

    let now = Instant::now();
    daemon.control.dismiss_strangers(now);
    assert_eq!(daemon.control.connections.len(), 1 + strangers.len());
    // The last of them came before `now`. The event loop does this now and then.
    daemon.control.upkeep(now + HELLO_WITHIN);
    assert_eq!(daemon.control.connections.len(), 1);
    assert!(strangers.iter().all(is_closed));

    daemon.serve(|socket| {
        client.pd();
        let mut late = Client::connect(socket);
        late.hello();
        late.pd();
    });
    daemon.end();
}

#[test]
fn a_hello_that_waits_for_a_slow_core_was_said_all_the_same() {
    let (mut daemon, gate) = HeldControl::gated(LIMITS);
    let mut client = connected(&mut daemon, 1).remove(0);
    gate.close();
    client.send(Op::Hello, &Hello::default(), &[]);
    daemon.run_until(|control| control.ops.unanswered() > 0);
    daemon.control.dismiss_strangers(Instant::now() + HELLO_WITHIN);
    drop(gate);
    daemon.serve(|_| drop(client.result::<HelloReply>().unwrap()));
    daemon.end();
}
