//! The control thread: verbs, resource tracking, reclaimer, events.
