//! Whole guests that go on running while their memory arrives.
