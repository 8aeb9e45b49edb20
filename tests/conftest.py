"Ctrl-C reaches what tests start, even if pytest, in the background of a shell, ignores it"
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
