BEGIN TRANSACTION;
CREATE TABLE feedback (
	nonce BLOB NOT NULL,
	model TEXT NOT NULL,
	version TEXT NOT NULL,
	alias TEXT,
	predicted_ms BIGINT NOT NULL,
	received_ms BIGINT NOT NULL,
	top TEXT,
	confidence DOUBLE,
	actual BIGINT,
	predicted_value DOUBLE,
	actual_value DOUBLE,
	rating SMALLINT,
	PRIMARY KEY (nonce),
	CONSTRAINT feedback_nonce_length CHECK (length(nonce) = 10),
	CONSTRAINT feedback_rating_range CHECK (rating BETWEEN 1 AND 5)
);
INSERT INTO "feedback" VALUES(X'00000000000000000001','digits','1.0.0','stable',1700000000000,1700000060000,'[3,8,9]',0.75,3,NULL,NULL,5);
INSERT INTO "feedback" VALUES(X'00000000000000000002','digits','1.1.0','canary',1700000001000,1700000061000,'[7,1]',0.5,1,NULL,NULL,NULL);
INSERT INTO "feedback" VALUES(X'00000000000000000003','wine','2.0.0-rc.1',NULL,1700000002000,1700000062000,NULL,NULL,NULL,0.1,0.30000000000000004,NULL);
CREATE TABLE headway_schema (
	version_num VARCHAR(32) NOT NULL,
	CONSTRAINT headway_schema_pkc PRIMARY KEY (version_num)
);
INSERT INTO "headway_schema" VALUES('0001');
CREATE INDEX feedback_by_model ON feedback (model, received_ms);
CREATE INDEX feedback_by_version ON feedback (model, version, received_ms);
CREATE INDEX feedback_by_alias ON feedback (model, version, alias, received_ms);
CREATE INDEX feedback_by_time ON feedback (received_ms);
COMMIT;
