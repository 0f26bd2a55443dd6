"""What did we know, and when? One definition of every feature, one state machine, replayed."""
