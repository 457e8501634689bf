-- A stream, and what did not become a row of it.

INSERT INTO referral.ingest_cursor (stream_id, edge)
    VALUES ('6a7e9a52-0f0b-4c25-9d35-5f2b7a4f0001', 'edge-1');

UPDATE referral.ingest_cursor
    SET seq = 104, rows = 100, quarantined = 1, dead = 1, gap = 2;

INSERT INTO referral.dead_letter (stream, seq, reason, detail, record)
    VALUES (1, 101, '22021', 'invalid byte sequence', '\x0102');
INSERT INTO referral.quarantine (stream, seq, reason, record, data)
    VALUES (1, 102, 'future', '\x03', '{"id": "x"}');
INSERT INTO referral.ingest_gap (stream, from_seq, to_seq, reason)
    VALUES (1, 103, 104, 'lost');
