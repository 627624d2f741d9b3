//! Tests of the tests: each of these deliberately broken behaviours must be noticed by some schedule.

use rnic_sim::{Scenario, run_with};
use rnic_transport::Mutation;

/// Schedules tried before a fault counts as unnoticed. Each of them passes when the fault is absent.
const SEEDS: u64 = 20_000;

/// The first seed that notices the fault, and what it says.
fn caught(mutation: Mutation) -> Option<(u64, String)> {
    (0..SEEDS).find_map(|seed| {
        let scenario = Scenario::new(seed);
        let play = || run_with(&scenario, |qp| qp.mutate(Some(mutation)));
        match std::panic::catch_unwind(play) {
            Ok(Ok(_)) => None,
            Ok(Err(what)) => Some((seed, what)),
            Err(_) => Some((seed, "panicked".into())),
        }
    })
}

macro_rules! faults {
    ($($name:ident: $mutation:ident;)*) => {$(
        #[test]
        fn $name() {
            let mutation = Mutation::$mutation;
            match caught(mutation) {
                Some((seed, what)) => println!("{mutation:?} is caught by seed {seed}: {what}"),
                None => panic!("{SEEDS} schedules do not notice {mutation:?}"),
            }
        }
    )*};
}

faults! {
    a_duplicate_send_executed_again_is_caught: ReexecuteDuplicateSend;
    a_duplicate_atomic_executed_again_is_caught: ReexecuteDuplicateAtomic;
    a_duplicate_not_acknowledged_is_caught: IgnoreDuplicate;
    a_second_outstanding_nak_is_caught: NakTwice;
    psns_compared_as_plain_numbers_are_caught: UnsignedPsnCompare;
    an_ack_that_completes_a_pending_read_is_caught: AckCompletesRead;
    an_unchecked_key_is_caught: SkipKeyCheck;
    a_message_longer_than_its_receive_wqe_is_caught: SkipReceiveCapacity;
    an_ignored_rnr_timer_is_caught: IgnoreRnrTimer;
    an_ack_timer_that_fires_before_the_rnr_timer_is_caught: AckTimerDuringRnr;
    a_read_resumed_at_the_wrong_address_is_caught: ResumeReadAtStart;
    an_ignored_fence_is_caught: IgnoreFence;
    success_after_error_is_caught: FlushWithSuccess;
    going_back_too_little_is_caught: GoBackTooLittle;
    a_retry_count_that_is_never_reset_is_caught: RetryNeverResets;
    an_xrc_srq_of_another_domain_is_caught: SkipXrcDomain;
    an_xrc_srq_named_for_another_is_caught: NameOtherSrq;
    a_bind_that_schedules_make_in_vain_is_caught: BindNothing;
    a_bind_done_before_its_window_is_free_is_caught: BindTooSoon;
    an_invalidation_done_before_its_key_is_free_is_caught: InvalidateTooSoon;
    an_invalidation_in_vain_is_caught: InvalidateNothing;
    a_flush_in_vain_is_caught: FlushNothing;
}
