//! Integration tests of a whole appliance.
