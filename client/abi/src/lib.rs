//! Every structure shared between rnicd and its clients.
